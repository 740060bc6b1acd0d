"""Decoder selection: the fastest decoder that computes what a plain forward pass does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from stars_engine.backends.decoders import Decoder
from stars_engine.backends.forked import ForkingDecoder
from stars_engine.backends.padded import PaddedDecoder
from stars_engine.backends.shared import SharedPrefixDecoder
from stars_engine.backends.uncached import UncachedDecoder
from stars_engine.kv_cache.self_check import ROUNDING, window_of

logger = logging.getLogger(__name__)

ON_GPU = "shared prefix in CUDA graphs"

DECODERS: dict[str, Callable[[Any, int | None], Decoder]] = {
    ON_GPU: partial(SharedPrefixDecoder, use_graphs=True),
    "shared prefix": SharedPrefixDecoder,
    "padded cache": PaddedDecoder,
    "forked cache": ForkingDecoder,
}


def select_decoder(model: Any, context_len: int | None) -> tuple[Decoder, str]:
    """Try each decoder on random tokens; return the first whose logits equal a plain forward's.

    Architectures differ in what their caches and attention layers can do, and some are silently
    wrong. Recurrent and hybrid models keep states that cannot be padded or cut.

    Args:
        model: A causal language model of transformers.
        context_len: Positions it has; None for no limit.

    Returns:
        The decoder, and its name with the reasons against faster ones.
    """
    plain = UncachedDecoder(model, context_len)
    reasons = []
    for name, kind in DECODERS.items():
        if name == ON_GPU and not _is_on_one_gpu(model):
            continue
        try:
            decoder = kind(model, context_len)
            difference, scale = _compare(decoder, plain, model, context_len)
        except Exception as error:  # noqa: BLE001 - architectures fail in ways of their own
            reasons.append(f"{name} raised {type(error).__name__}: {error}")
            continue
        if difference <= ROUNDING.get(model.dtype, 6e-2) * scale:
            decoder.free_unused()
            return decoder, _described(name, reasons)
        reasons.append(f"{name}: logits differed by {difference:.2g} of {scale:.2g}")
    logger.warning(
        "%s runs without a KV cache, which is slow: %s", type(model).__name__, "; ".join(reasons)
    )
    return plain, _described("no cache", reasons)


def _is_on_one_gpu(model: Any) -> bool:
    devices = {parameter.device for parameter in model.parameters()}
    return len(devices) == 1 and devices.pop().type == "cuda"


def _described(name: str, reasons: list[str]) -> str:
    return f"{name} ({'; '.join(reasons)})" if reasons else name


@torch.inference_mode()
def _compare(
    decoder: Decoder, plain: Decoder, model: Any, context_len: int | None
) -> tuple[float, float]:
    """Return the largest difference between two decoders' logits, and the largest logit.

    Three candidates of one prefix, two of another; both prefixes are extended by one of theirs.
    """
    generator = torch.Generator().manual_seed(0)
    longest = 12 + window_of(model)  # a prompt longer than what a layer sees
    if context_len is not None:
        longest = min(longest, context_len - 9)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocab_size, (2, longest + 9), generator=generator).tolist()
    others = torch.randint(vocab_size, (3, 5), generator=generator).tolist()
    runs = []
    for each in (decoder, plain):
        prefixes: Sequence[Any] = [None, None]
        lengths = [max(1, longest), max(1, longest - 5)]
        logits: list[torch.Tensor] = []
        for turn in range(3):
            known = [row[:length] for row, length in zip(ids, lengths, strict=True)]
            prefixes = each.compute(list(zip(known, prefixes, strict=True)))
            logits.append(torch.stack([prefix.last_output for prefix in prefixes]))
            if turn == 2:
                break
            branches = each.branch([prefixes[index] for index in (0, 1, 0, 1, 0)], 3)
            for step in range(3):
                own = [row[place + step] for row, place in zip(ids, lengths, strict=True)]
                tokens = torch.tensor([*own, *others[step][2:]], device=logits[0].device)
                logits.append(branches.step(tokens).clone())
            lengths = [length + 4 for length in lengths]
        runs.append(torch.cat(logits).float())
    return (runs[0] - runs[1]).abs().max().item(), runs[1].abs().max().item()

"""The local backend: a causal language model of transformers, many candidate rows at a time."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from transformers import AutoModelForCausalLM

from stars_engine.backends.base import Draft, DraftRequest
from stars_engine.backends.decoders import CachedDecoder, Decoder, FullDecoder, Prefix
from stars_engine.backends.facts import sampling_of
from stars_engine.backends.row_sampler import Row, RowSampler
from stars_engine.codec import Codec
from stars_engine.config import SamplingParams, TransformersModel
from stars_engine.errors import GenerationError, Interrupted, ModelLoadError, needs_extra
from stars_engine.hub import (
    check_exists,
    context_len,
    first_line,
    load_model,
    load_tokenizer,
    resolve,
)
from stars_engine.sampling import NO_TOKEN

logger = logging.getLogger(__name__)

_ADAPTER_WEIGHTS = "adapter_model.safetensors"

# Largest difference between cached and plain logits that the self-check takes for rounding,
# relative to the largest logit.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 6e-2}


class TransformersBackend:
    """A `LanguageModel` over one loaded checkpoint.

    Args:
        config: What to load, or the live objects.
    """

    def __init__(self, config: TransformersModel) -> None:
        tokenizer = load_tokenizer(config)
        if config.chat_template is not None:
            tokenizer = copy.copy(tokenizer)  # the caller's own stays as it is
            tokenizer.chat_template = config.chat_template
        model = load_model(config, AutoModelForCausalLM)
        if config.adapter_path is not None:
            model = _add_adapter(model, resolve(config.adapter_path))
        self.model = model
        self.codec = Codec(tokenizer)
        self.context_len = context_len(model.config, tokenizer)
        self.vocab_size = int(model.get_input_embeddings().weight.shape[0])
        self.end_ids = _end_ids(model, tokenizer)
        self._interrupted = False
        self.decoder, self.path = self._choose_decoder()

    # --- LanguageModel ---

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """Read prompts; equal ones are read once and share their tensors."""
        distinct = list({tuple(prompt): None for prompt in prompts})
        read = dict(zip(distinct, self.decoder.start(distinct), strict=True))
        return [_copy(read[tuple(prompt)]) for prompt in prompts]

    @torch.inference_mode()
    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft | GenerationError]:
        """Draft all candidates and their lookaheads together, one token of each row per step."""
        prefixes = [request.slot for request in requests]
        logits = torch.stack([prefix.next_logits for prefix in prefixes])  # (rows, vocab)
        sampler = RowSampler(requests, logits, self.end_ids)
        rows = [Row(request) for request in requests]
        failures: dict[int, GenerationError] = {}
        branches = None
        step = 0
        while True:
            if self._interrupted:
                raise Interrupted
            tokens = sampler.draw(logits, [row.uniform for row in rows], step)  # (rows,)
            for index, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
                if row.done:
                    continue
                if token != NO_TOKEN:
                    row.append(token, is_end=self.is_end(token, row.request.sampling))
                    continue
                row.done = True
                if not row.in_lookahead:  # a lookahead just ends there
                    failures[index] = _nothing_to_draw(logits[index], row.request)
            if all(row.done for row in rows):
                return [failures.get(index, row.draft) for index, row in enumerate(rows)]
            branches = branches or self.decoder.branch(prefixes)
            logits = branches.step(tokens.clamp(min=0))
            step += 1

    @torch.inference_mode()
    def commit(self, kept: Sequence[tuple[Prefix, Sequence[int]]]) -> None:
        """Append accepted segments; each is read once more, in one pass."""
        if kept:
            self.decoder.extend(kept)

    def interrupt(self) -> None:
        """Give up drafting for good, at the next token; may be called from any thread."""
        self._interrupted = True

    def is_end(self, token: int, sampling: SamplingParams) -> bool:
        """True for the model's own end-of-text ids and the request's `stop_token_ids`."""
        return token in self.end_ids or token in sampling.stop_token_ids

    def completion_text(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> tuple[str, int]:
        """See `Codec.completion_text`."""
        return self.codec.completion_text(prompt_ids, ids)

    def encode_continuation(self, text: str) -> list[int]:
        """See `Codec.encode_continuation`."""
        return self.codec.encode_continuation(text)

    def default_sampling(self) -> SamplingParams:
        """Return what the checkpoint's generation config sets; ours for what it leaves open."""
        return sampling_of(self.model.generation_config)

    # --- choosing a decoder ---

    def _choose_decoder(self) -> tuple[Decoder, str]:
        """Use the KV cache if it gives what a plain forward does, else do without.

        Recurrent and hybrid models keep states that cannot be padded or copied by columns.
        """
        full = FullDecoder(self.model, self.context_len)
        cached = CachedDecoder(self.model, self.context_len)
        try:
            difference, scale = self._compare(cached, full)
        except Exception as error:  # noqa: BLE001 - architectures fail in ways of their own
            reason = f"the KV cache raised {type(error).__name__}: {error}"
        else:
            if difference <= _ROUNDING.get(self.model.dtype, 6e-2) * scale:
                return cached, "kv cache"
            reason = f"logits differed by {difference:.2g} of {scale:.2g}"
        logger.warning(
            "%s runs without a KV cache, which is slow: %s", type(self.model).__name__, reason
        )
        return full, f"no cache ({reason})"

    @torch.inference_mode()
    def _compare(self, cached: Decoder, full: Decoder) -> tuple[float, float]:
        """Return the largest difference between two decoders' logits, and the largest logit."""
        generator = torch.Generator().manual_seed(0)
        window = getattr(self.model.config.get_text_config(), "sliding_window", None) or 0
        longest = 12 + (window if window <= 512 else 0)  # a prompt longer than a small window
        if self.context_len is not None:
            longest = min(longest, self.context_len - 6)
        lengths = [max(1, longest - 5), max(1, longest)]
        ids = torch.randint(self.vocab_size, (2, longest + 6), generator=generator).tolist()
        prompts = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        kept = [row[length : length + 3] for row, length in zip(ids, lengths, strict=True)]
        steps = [row[length + 3 : length + 6] for row, length in zip(ids, lengths, strict=True)]
        runs = []
        for decoder in (cached, full):
            prefixes = decoder.start(prompts)
            decoder.extend(list(zip(prefixes, kept, strict=True)))
            logits = [torch.stack([prefix.next_logits for prefix in prefixes])]
            branches = decoder.branch(prefixes)
            logits += [
                branches.step(torch.tensor(column, device=logits[0].device))
                for column in zip(*steps, strict=True)
            ]
            runs.append(torch.stack(logits).float())
        return (runs[0] - runs[1]).abs().max().item(), runs[1].abs().max().item()


def _copy(prefix: Prefix) -> Prefix:
    # The tensors are shared: `extend` replaces them and never writes into them.
    return Prefix(
        prefix.token_ids, prefix.num_prompt_tokens, prefix.next_logits, list(prefix.layers)
    )


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-text ids of the generation config (an id or a list), else config, else tokenizer.

    Some checkpoints name ids that the model has no logit for; it cannot end by those.
    """
    vocab_size = model.get_input_embeddings().weight.shape[0]
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        value = getattr(holder, "eos_token_id", None)
        ids = [value] if isinstance(value, int) else value or []
        known = frozenset(token for token in ids if 0 <= token < vocab_size)
        if known:
            return known
    return frozenset()


def _nothing_to_draw(logits: torch.Tensor, request: DraftRequest) -> GenerationError:
    prefix: Prefix = request.slot
    position = len(prefix.token_ids) - prefix.num_prompt_tokens
    if (logits.isnan() | (logits == torch.inf)).any():  # -inf is how models say never
        reason = (
            "the model's logits are nan or infinite. Cure: another dtype, such as dtype='float32'"
        )
    else:
        reason = (
            "the sampling settings leave none. Cure: check logit_bias, min_tokens with "
            f"stop_token_ids, and temperature={request.sampling.temperature}"
        )
    return GenerationError(
        f"there is no token to draw in the segment that begins at token {position} of the answer: "
        f"{reason}. The request ends here; others are not affected"
    )


def _add_adapter(model: Any, path: str) -> Any:
    with needs_extra("peft"):
        from peft import PeftModel  # noqa: PLC0415 - an extra of its own
    check_exists(path, "adapter_path")
    try:
        directory = _adapter_directory(path)
        _check_adapter(directory, path)
        return PeftModel.from_pretrained(model, str(directory)).eval()
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"adapter_path={path!r} could not be loaded: {first_line(error)}. Cure: give the "
            "directory that PeftModel.save_pretrained wrote for this base model"
        ) from error


def _adapter_directory(path: str) -> Path:
    directory = Path(path)
    if not directory.is_dir():  # on the hub: what is not fetched cannot be read by mistake
        wanted = ["adapter_config.json", _ADAPTER_WEIGHTS]
        directory = Path(huggingface_hub.snapshot_download(path, allow_patterns=wanted))
    return directory


def _check_adapter(directory: Path, path: str) -> None:
    if not (directory / _ADAPTER_WEIGHTS).is_file():
        raise ModelLoadError(
            f"adapter_path={path!r} holds no {_ADAPTER_WEIGHTS}, and pickled weights can run code "
            "when read. Cure: load it once where you trust it and write it with "
            "PeftModel.save_pretrained(directory, safe_serialization=True)"
        )

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

from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest, PrefixHandle
from stars_engine.backends.decoders import Prefix
from stars_engine.backends.drafting import Drafting
from stars_engine.backends.facts import sampling_of
from stars_engine.backends.row_sampler import RowSampler
from stars_engine.backends.selection import choose_decoder
from stars_engine.config import SamplingParams, TransformersModel
from stars_engine.errors import (
    ConfigError,
    GenerationError,
    Interrupted,
    ModelLoadError,
    Problem,
    needs_extra,
)
from stars_engine.grammars import Grammars, GrammarState
from stars_engine.loading import (
    check_exists,
    context_len,
    first_line,
    hub_token,
    load_model,
    load_tokenizer,
    resolve,
)
from stars_engine.masking import redacted_cause
from stars_engine.tokenization.codec import Codec

logger = logging.getLogger(__name__)

_ADAPTER_WEIGHTS = "adapter_model.safetensors"


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
            model = _add_adapter(model, resolve(config.adapter_path), config)
        self.model = model
        self.codec = Codec(tokenizer)
        self.context_len = context_len(model.config, tokenizer)
        self.vocab_size = int(model.get_input_embeddings().weight.shape[0])
        self.end_ids = _end_ids(model, tokenizer)
        self._grammars: Grammars | None = None  # its library is an extra: made when it is needed
        self._interrupted = False
        self.decoder, self.path = choose_decoder(model, self.context_len)

    # --- LanguageModel ---

    @torch.inference_mode()
    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft | GenerationError]:
        """Draft all candidates and their lookaheads together, one token of each row per step."""
        prefixes = self._compute_prefixes(requests)
        logits = torch.stack([prefix.next_logits for prefix in prefixes])  # (rows, vocab)
        grammars = self._grammar_states(requests, prefixes)
        sampler = RowSampler(requests, logits, self.end_ids, self._grammars)
        drafting = Drafting(requests, grammars, self.is_end, logits.device)
        sampler.prepare(drafting.rows)
        num_steps = max(len(request.uniforms) + request.lookahead for request in requests) - 1
        branches = None
        for step in range(num_steps + 1):
            if self._interrupted:
                raise Interrupted
            tokens = sampler.draw(logits, drafting.rows, step)  # (rows,)
            drafting.note(tokens, logits, is_last=step == num_steps)
            if drafting.done:
                break
            sampler.prepare(drafting.rows)
            branches = branches or self.decoder.branch(prefixes, num_steps)
            logits = branches.step(tokens.clamp(min=0))
        return drafting.drafts()

    def check_grammar(self, sampling: SamplingParams) -> None:
        """See `LanguageModel`."""
        if sampling.grammar is not None:
            self.grammars.start(sampling.grammar)
            if not self.end_ids and not sampling.stop_token_ids:
                message = (
                    "the model has no end-of-text token, so an answer that is complete could not "
                    "end. Cure: stop_token_ids=[...]"
                )
                raise ConfigError("SamplingParams", [Problem("grammar", message)])

    @property
    def grammars(self) -> Grammars:
        """Grammars over the model's vocabulary."""
        if self._grammars is None:
            self._grammars = Grammars(*self.codec.vocabulary(self.vocab_size), self.end_ids)
        return self._grammars

    def _compute_prefixes(self, requests: Sequence[DraftRequest]) -> list[Prefix]:
        """Return each request's prefix; what is not computed of it yet is computed now."""
        known: list[tuple[Prefix, Sequence[int]]] = []
        fresh: dict[PrefixHandle, tuple[int, ...]] = {}
        for request in {request.handle: request for request in requests}.values():
            prefix, ids = request.handle.cached, tuple(request.token_ids)
            size = len(prefix.token_ids) if isinstance(prefix, Prefix) else 0
            if size and list(ids[:size]) == prefix.token_ids:
                if size < len(ids):
                    known.append((prefix, ids[size:]))
            else:
                request.handle.release()
                fresh[request.handle] = ids
        if known:
            self.decoder.extend(known)
        distinct = list(dict.fromkeys(fresh.values()))
        computed = (
            dict(zip(distinct, self.decoder.start(distinct), strict=True)) if distinct else {}
        )
        used: set[tuple[int, ...]] = set()
        for handle, ids in fresh.items():
            handle.cached = self.decoder.copy(computed[ids]) if ids in used else computed[ids]
            used.add(ids)
        return [request.handle.cached for request in requests]

    def _grammar_states(
        self, requests: Sequence[DraftRequest], prefixes: Sequence[Prefix]
    ) -> list[GrammarState | None]:
        """Return where in its grammar each request is; None if it has none."""
        states: list[GrammarState | None] = []
        for request, prefix in zip(requests, prefixes, strict=True):
            grammar, completion = request.sampling.grammar, request.token_ids
            if grammar is None:
                states.append(None)
                continue
            if prefix.grammar is None:
                prefix.grammar = self.grammars.start(grammar)
                prefix.num_in_grammar = request.num_prompt_tokens
            prefix.grammar.consume(completion[prefix.num_in_grammar :])
            prefix.num_in_grammar = len(completion)
            states.append(prefix.grammar)
        return states

    # --- memory ---

    @property
    def bytes_per_token(self) -> int:
        """See `KeepsCache`."""
        return self.decoder.bytes_per_token

    def limit_cache(self, max_bytes: int | None) -> None:
        """See `KeepsCache`."""
        self.decoder.limit_cache(max_bytes)

    def drop_unused(self) -> None:
        """See `KeepsCache`."""
        self.decoder.drop_unused()

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


def _add_adapter(model: Any, path: str, config: TransformersModel) -> Any:
    with needs_extra("peft"):
        from peft import PeftModel  # noqa: PLC0415 - an extra of its own
    token = hub_token(config)
    check_exists(path, "adapter_path", token=token)
    try:
        directory = _adapter_directory(path, token)
        _check_adapter(directory, path)
        return PeftModel.from_pretrained(model, str(directory)).eval()
    except ModelLoadError:
        raise
    except Exception as error:  # noqa: BLE001 - libraries fail in many ways
        raise ModelLoadError(
            f"adapter_path={path!r} could not be loaded: {first_line(error, config)}. Cure: give "
            "the directory that PeftModel.save_pretrained wrote for this base model"
        ) from redacted_cause(error, config.secrets)


def _adapter_directory(path: str, token: str | None) -> Path:
    directory = Path(path)
    if not directory.is_dir():  # on the hub: what is not fetched cannot be read by mistake
        wanted = ["adapter_config.json", _ADAPTER_WEIGHTS]
        asked: dict[str, Any] = {} if token is None else {"token": token}
        found = huggingface_hub.snapshot_download(path, allow_patterns=wanted, **asked)
        directory = Path(found)
    return directory


def _check_adapter(directory: Path, path: str) -> None:
    if not (directory / _ADAPTER_WEIGHTS).is_file():
        raise ModelLoadError(
            f"adapter_path={path!r} holds no {_ADAPTER_WEIGHTS}, and pickled weights can run code "
            "when read. Cure: load it once where you trust it and write it with "
            "PeftModel.save_pretrained(directory, safe_serialization=True)"
        )

"""The local backend: a causal language model of transformers, many candidate rows at a time."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import huggingface_hub
import torch
from transformers import AutoModelForCausalLM

from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest, Pause
from stars_engine.backends.codec_model import CodecModel, with_chat_template
from stars_engine.backends.decoders import ComputedPrefix
from stars_engine.backends.draft_batch import DraftBatch
from stars_engine.backends.facts import find_end_ids, sampling_of
from stars_engine.backends.features import FeatureRecorder, ProbedModel
from stars_engine.backends.row_sampler import RowSampler
from stars_engine.backends.selection import select_decoder
from stars_engine.config import Grammar, SamplingParams, TransformersModel
from stars_engine.errors import (
    ConfigError,
    GenerationError,
    Interrupted,
    ModelLoadError,
    Problem,
    needs_extra,
)
from stars_engine.grammars import Grammars, GrammarState
from stars_engine.hidden_states.probes import ProbeSet
from stars_engine.loading.context import context_len
from stars_engine.loading.models import load_model, load_tokenizer
from stars_engine.loading.sources import check_exists, first_line, hub_token, resolve_source
from stars_engine.out_of_memory import memory_usage
from stars_engine.problems import run_to_end
from stars_engine.redaction import redacted_cause
from stars_engine.tokenization.codec import Codec

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_MAX_RESTARTS = 3  # of a draft, if the weights change again and again


class TransformersBackend(CodecModel):
    """A `LanguageModel` over one loaded checkpoint.

    Args:
        config: What to load, or the live objects.
    """

    def __init__(self, config: TransformersModel) -> None:
        tokenizer = with_chat_template(load_tokenizer(config), config.chat_template)
        model = load_model(config, AutoModelForCausalLM)
        if config.adapter_path is not None:
            model = _add_adapter(model, resolve_source(config.adapter_path), config)
        self.model = model
        self.codec = Codec(tokenizer)
        self.context_len = context_len(model.config, tokenizer)
        self.vocab_size = int(model.get_input_embeddings().weight.shape[0])
        holders = (getattr(model, "generation_config", None), model.config, tokenizer)
        self.end_ids = find_end_ids(holders, self.vocab_size)
        self._grammars: Grammars | None = None  # its library is an extra: made when it is needed
        self._grammars_lock = Lock()
        self._interrupted = False
        self.decoder, self.path = select_decoder(model, self.context_len)
        self._probed = probed = ProbedModel(model)
        # See `GivesHiddenStates`.
        self.num_layers, self.hidden_size = probed.num_layers, probed.hidden_size
        self.attach, self.read_states = probed.attach, probed.read_states

    # --- LanguageModel ---

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft | GenerationError]:
        """Draft all candidates and their lookaheads together, one token of each row per step.

        Features of a draft's last token take one step more, which computes the token for the next
        segment, too, if the draft is accepted.
        """
        return run_to_end(self.draft_in_parts(requests))

    @torch.inference_mode()
    def draft_in_parts(
        self, requests: Sequence[DraftRequest]
    ) -> Generator[Pause, None, list[Draft | GenerationError]]:
        """See `PausableLanguageModel`."""
        drafts, num_left = None, _MAX_RESTARTS
        while drafts is None:
            drafts = yield from self._try_draft(requests, may_restart=num_left > 0)
            num_left -= 1
        return drafts

    def _try_draft(
        self, requests: Sequence[DraftRequest], *, may_restart: bool
    ) -> Generator[Pause, None, list[Draft | GenerationError] | None]:
        """Draft; return None to start again, because weights or probes changed during a pause."""
        num_tokens = max(len(request.uniforms) + request.lookahead for request in requests)
        prefixes = yield from self._compute_prefixes(requests, num_tokens)
        start = _Start(self._probed.current, self.decoder.num_resets)
        logits = torch.stack([prefix.last_output for prefix in prefixes])  # (rows, vocab)
        grammars = [self._grammar_state(request) for request in requests]
        sampler = RowSampler(requests, logits, self.end_ids, self._grammars)
        batch = DraftBatch(requests, grammars, self.is_end, logits.device)
        sampler.prepare(batch.rows)
        if sampler.waits_for is not None:  # the masks of a slow grammar
            yield Pause(num_tokens, sampler.waits_for)
            if self._is_outdated(start, probes=True, weights=True):
                return None
        recorder = self._recorder(requests, prefixes, num_tokens)
        num_steps = num_tokens - (recorder is None)
        branches = None
        for step in range(num_tokens):
            if self._interrupted:
                raise Interrupted
            tokens = sampler.draw(logits, batch.rows, step)  # (rows,)
            batch.note(tokens, logits, is_last=step == num_tokens - 1)
            if batch.done and recorder is None:
                break
            if not batch.done:
                sampler.prepare(batch.rows)
            branches = branches or self.decoder.branch(prefixes, num_steps)
            logits = branches.step(tokens.clamp(min=0))
            if recorder is not None:
                recorder.note(branches.features)
            if batch.done:
                branches.keep_last()
                break
            yield Pause(num_tokens - step - 1, sampler.waits_for)
            if self._is_outdated(start, probes=recorder is not None, weights=may_restart):
                return None
        drafts = batch.drafts()
        return drafts if recorder is None else recorder.add_to(drafts, requests)

    def _recorder(
        self, requests: Sequence[DraftRequest], prefixes: Sequence[ComputedPrefix], num_tokens: int
    ) -> FeatureRecorder | None:
        if self._probed.current is None or not any(request.probes for request in requests):
            return None
        return FeatureRecorder(self._probed.current, prefixes, num_tokens)

    def _is_outdated(self, start: _Start, *, probes: bool, weights: bool) -> bool:
        """Whether the probes or the weights have changed since a draft began, as far as asked."""
        if probes and self._probed.current is not start.probes:
            return True
        return weights and self.decoder.num_resets != start.num_resets

    # --- grammars ---

    def check_grammar(self, sampling: SamplingParams) -> None:
        """See `LanguageModel`."""
        if sampling.grammar is not None:
            self.grammars.start(sampling.grammar)
            if not self.end_ids and not sampling.stop_token_ids:
                message = (
                    "the model has no end-of-text token, so an answer that is complete could not "
                    "end. Hint: set stop_token_ids=[...]"
                )
                raise ConfigError("SamplingParams", [Problem("grammar", message)])

    @property
    def grammars(self) -> Grammars:
        """Grammars over the model's vocabulary; making them takes long if that is large."""
        with self._grammars_lock:
            if self._grammars is None:
                self._grammars = Grammars(*self.codec.vocabulary(self.vocab_size), self.end_ids)
            return self._grammars

    @property
    def has_grammars(self) -> bool:
        """Whether `grammars` are made."""
        return self._grammars is not None

    def _compute_prefixes(
        self, requests: Sequence[DraftRequest], num_tokens: int
    ) -> Generator[Pause, None, list[ComputedPrefix]]:
        """Return each request's prefix, to draft a number of tokens; candidates share it."""
        keys = [(request.handle, tuple(request.token_ids)) for request in requests]
        distinct = dict.fromkeys(keys)
        while True:
            self._probed.apply(self.decoder, self.model.get_input_embeddings().weight.device)
            probes = self._probed.current
            parts = self.decoder.compute_in_parts([(ids, each.cached) for each, ids in distinct])
            computed = yield from _in_pauses(parts, num_tokens)
            if self._probed.current is probes:
                break
        found = dict(zip(distinct, computed, strict=True))
        for (handle, _), each in found.items():
            handle.cached = each
        return [found[key] for key in keys]

    def _grammar_state(self, request: DraftRequest) -> GrammarState | None:
        """Return the state of a request's grammar after its prefix; None if it has none.

        It belongs to the request, not to the cache: equal prefixes may have different grammars.
        """
        grammar = request.sampling.grammar
        if grammar is None:
            return None
        completion = tuple(request.token_ids[request.num_prompt_tokens :])
        progress = request.handle.grammar
        if not isinstance(progress, _GrammarProgress) or not progress.leads_to(grammar, completion):
            progress = _GrammarProgress(grammar, self.grammars.start(grammar))
            request.handle.grammar = progress
        return progress.advance(completion)

    # --- memory ---

    @property
    def bytes_per_token(self) -> int:
        """See `KeepsCache`."""
        return self.decoder.bytes_per_token

    def limit_cache(self, max_bytes: int | None) -> None:
        """See `KeepsCache`."""
        self.decoder.limit_cache(max_bytes)

    def free_unused(self) -> None:
        """See `KeepsCache`."""
        self.decoder.free_unused()

    def memory_usage(self) -> Mapping[str, int]:
        """See `ReportsMemory`."""
        return memory_usage(self.decoder)

    def interrupt(self) -> None:
        """Give up drafting for good, at the next token; may be called from any thread."""
        self._interrupted = True

    def default_sampling(self) -> SamplingParams:
        """Return what the checkpoint's generation config sets; ours for what it leaves open."""
        return sampling_of(self.model.generation_config)


def _in_pauses(
    parts: Generator[int, None, Sequence[ComputedPrefix]], num_tokens: int
) -> Generator[Pause, None, Sequence[ComputedPrefix]]:
    """Compute prefixes; pause between two parts."""
    while True:
        try:
            num_left = next(parts)
        except StopIteration as end:
            found: Sequence[ComputedPrefix] = end.value
            return found
        yield Pause(num_tokens + num_left)


class _Start(NamedTuple):
    """What the beginning of a draft was computed with; see `ProbedModel` and `Decoder`."""

    probes: ProbeSet | None
    num_resets: int


@dataclass
class _GrammarProgress:
    """How far a request is in its grammar.

    Attributes:
        grammar: The grammar.
        state: Its state after the tokens consumed.
        consumed: Tokens of the completion.
    """

    grammar: Grammar
    state: GrammarState
    consumed: tuple[int, ...] = ()

    def leads_to(self, grammar: Grammar, completion: tuple[int, ...]) -> bool:
        """Whether the tokens consumed begin a completion under a grammar."""
        same = self.grammar is grammar or self.grammar == grammar
        return same and completion[: len(self.consumed)] == self.consumed

    def advance(self, completion: tuple[int, ...]) -> GrammarState:
        """Consume what is new of a completion; return the state after it."""
        if len(completion) > len(self.consumed):
            self.state.consume(completion[len(self.consumed) :])
            self.consumed = completion
        return self.state


def _add_adapter(model: Any, path: str, config: TransformersModel) -> Any:
    with needs_extra("peft"):
        from peft import PeftModel  # noqa: PLC0415 - an extra of its own
    token = hub_token(config)
    check_exists(path, "adapter_path", token=token)
    try:
        directory = _adapter_directory(path, token)
        return PeftModel.from_pretrained(model, str(directory)).eval()
    except ModelLoadError:
        raise
    except Exception as error:  # noqa: BLE001 - libraries fail in many ways
        raise ModelLoadError(
            f"adapter_path={path!r} could not be loaded: {first_line(error, config)}. Hint: give "
            "the directory that PeftModel.save_pretrained wrote for this base model"
        ) from redacted_cause(error, config.secrets)


def _adapter_directory(path: str, token: str | None) -> Path:
    directory = Path(path)
    if not directory.is_dir():  # on the hub: what is not fetched cannot be read by mistake
        wanted = ["adapter_config.json", _ADAPTER_WEIGHTS]
        asked: dict[str, Any] = {} if token is None else {"token": token}
        found = huggingface_hub.snapshot_download(path, allow_patterns=wanted, **asked)
        directory = Path(found)
    if not (directory / _ADAPTER_WEIGHTS).is_file():
        raise ModelLoadError(
            f"adapter_path={path!r} contains no {_ADAPTER_WEIGHTS}, and reading pickled weights "
            "can run code. Hint: if you trust the adapter, load it once and write it with "
            "PeftModel.save_pretrained(directory, safe_serialization=True)"
        )
    return directory

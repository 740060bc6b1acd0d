"""How servers are asked to continue token ids, and how their answers are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from stars_engine.remote.failures import MalformedAnswerError

_MAX_BIAS = 100.0  # OpenAI's API, and vLLM's, clamp biases to this
_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A request to continue token ids.

    Attributes:
        token_ids: The prefix.
        max_tokens: Tokens to draw at most.
        seed: Seed of the draw, below 2**63.
        temperature: 0 for the likeliest tokens.
        top_k: None for no limit.
        logit_bias: Added to logits; -inf forbids a token.
        min_tokens: Tokens before an end token may be drawn.
        stop_token_ids: Tokens that end the text.
    """

    token_ids: tuple[int, ...]
    max_tokens: int
    seed: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()

    def biases(self) -> dict[str, float]:
        """Return the biases for JSON, which has no infinities."""
        return {str(token): max(value, -_MAX_BIAS) for token, value in self.logit_bias.items()}


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to a `CompletionRequest`.

    Attributes:
        token_ids: The tokens drawn, with the one that ended the text.
        ended: Whether the text ended; if not, a limit was reached.
        num_prompt_tokens: Tokens of the prefix, as the server counts them.
        num_cached_tokens: Those of them that were in its prefix cache; 0 if it does not say.
    """

    token_ids: tuple[int, ...]
    ended: bool
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0


class Dialect(Protocol):
    """The completion endpoint of one kind of server.

    Attributes:
        name: Its name in configs and messages.
        path: The path of the endpoint.
        unsupported: Fields of the sampling settings that it cannot follow.
        max_temperature: The highest temperature that it allows.
        has_min_tokens: Whether it follows `min_tokens`; if not, `DraftInParts` does.
    """

    name: str
    path: str
    unsupported: frozenset[str]
    max_temperature: float
    has_min_tokens: bool

    def body(self, request: CompletionRequest, model: str | None) -> dict[str, Any]:
        """Return the body of a request."""

    def parse(self, answer: Any) -> Completion:
        """Read an answer.

        Raises:
            MalformedAnswerError: It does not have the form that the endpoint promises.
        """


class VllmGenerate:
    """vLLM's endpoint for token ids; the server needs `--enable-scale-out`."""

    name, path = "vllm", "/inference/v1/generate"
    unsupported: frozenset[str] = frozenset()
    max_temperature = 2.0
    has_min_tokens = True

    def body(self, request: CompletionRequest, model: str | None) -> dict[str, Any]:
        """See `Dialect`."""
        params = {**_vllm_params(request), "detokenize": False}
        return {"model": model, "token_ids": list(request.token_ids), "sampling_params": params}

    def parse(self, answer: Any) -> Completion:
        """See `Dialect`."""
        return _openai_choice(answer)


class OpenAICompletions:
    """The completions endpoint of OpenAI's API, with vLLM's `return_token_ids`."""

    name, path = "completions", "/v1/completions"
    unsupported: frozenset[str] = frozenset()
    max_temperature = 2.0
    has_min_tokens = True

    def body(self, request: CompletionRequest, model: str | None) -> dict[str, Any]:
        """See `Dialect`."""
        return {
            "model": model,
            "prompt": list(request.token_ids),
            "return_token_ids": True,
            "skip_special_tokens": False,
            **_vllm_params(request),
        }

    def parse(self, answer: Any) -> Completion:
        """See `Dialect`."""
        return _openai_choice(answer)


class SGLangGenerate:
    """SGLang's own endpoint; seeds need `--enable-deterministic-inference`."""

    name, path = "sglang", "/generate"
    unsupported: frozenset[str] = frozenset()
    max_temperature = math.inf
    has_min_tokens = True

    def body(self, request: CompletionRequest, model: str | None) -> dict[str, Any]:
        """See `Dialect`."""
        params = {
            "n": 1,
            "max_new_tokens": request.max_tokens,
            "min_new_tokens": request.min_tokens,
            "temperature": request.temperature,
            "top_k": -1 if request.top_k is None else request.top_k,
            "top_p": request.top_p,
            "min_p": request.min_p,
            "repetition_penalty": request.repetition_penalty,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "stop_token_ids": list(request.stop_token_ids),
            "sampling_seed": request.seed & _INT32,
            "skip_special_tokens": False,
            "no_stop_trim": True,
        }
        if request.logit_bias:
            params["logit_bias"] = request.biases()
        return {
            "input_ids": list(request.token_ids),
            "sampling_params": params,
            "stream": False,
        }

    def parse(self, answer: Any) -> Completion:
        """See `Dialect`."""
        [answer] = answer if isinstance(answer, list) else [answer]
        ids = _ids(answer, "output_ids")
        meta = answer["meta_info"]
        reason = meta["finish_reason"] or {}
        matched = reason.get("matched")
        if isinstance(matched, int) and (not ids or ids[-1] != matched):
            ids = (*ids, matched)  # some versions leave the token that ended the text out
        return Completion(
            ids,
            ended=reason.get("type") == "stop",
            num_prompt_tokens=_count(meta.get("prompt_tokens")),
            num_cached_tokens=_count(meta.get("cached_tokens")),
        )


class LlamaServer:
    """llama-server's own endpoint.

    Its presence and frequency penalties count the prompt, so these are not supported. Options of
    its command line, such as Mirostat, hold for all settings that a request leaves out.
    """

    name, path = "llama.cpp", "/completion"
    unsupported = frozenset({"presence_penalty", "frequency_penalty"})
    max_temperature = math.inf
    has_min_tokens = False

    def body(self, request: CompletionRequest, model: str | None) -> dict[str, Any]:
        """See `Dialect`."""
        penalized = len(request.token_ids) + request.max_tokens
        return {
            "model": model,
            "prompt": list(request.token_ids),
            "n_predict": request.max_tokens,
            "seed": request.seed & _INT32,
            "temperature": request.temperature,
            "dynatemp_range": 0.0,
            "top_k": request.top_k or 0,
            "top_p": request.top_p,
            "min_p": request.min_p,
            "min_keep": 0,
            "mirostat": 0,
            "repeat_penalty": request.repetition_penalty,
            "repeat_last_n": 0 if request.repetition_penalty == 1 else penalized,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            # top_p and min_p cut the distribution at this temperature, as they do locally
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
            "logit_bias": [
                [token, False if bias == -math.inf else bias]  # False forbids the token
                for token, bias in request.logit_bias.items()
            ],
            "ignore_eos": False,
            "return_tokens": True,
            "cache_prompt": True,
            "stream": False,
        }

    def parse(self, answer: Any) -> Completion:
        """See `Dialect`."""
        [answer] = answer if isinstance(answer, list) else [answer]
        timings = answer.get("timings") or {}
        cached = _count(timings.get("cache_n"))
        return Completion(
            _ids(answer, "tokens"),
            ended=answer["stop_type"] in ("eos", "word"),
            num_prompt_tokens=cached + _count(timings.get("prompt_n")),
            num_cached_tokens=cached,
        )


DIALECTS: tuple[Dialect, ...] = (
    VllmGenerate(),
    OpenAICompletions(),
    SGLangGenerate(),
    LlamaServer(),
)


def dialect_named(name: str) -> Dialect:
    """Return the dialect with a name."""
    return next(dialect for dialect in DIALECTS if dialect.name == name)


def _vllm_params(request: CompletionRequest) -> dict[str, Any]:
    """Return all sampling parameters; a server replaces those that are left out by its own."""
    params: dict[str, Any] = {
        "n": 1,
        "max_tokens": request.max_tokens,
        "min_tokens": request.min_tokens,
        "temperature": request.temperature,
        "top_k": 0 if request.top_k is None else request.top_k,
        "top_p": request.top_p,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "stop_token_ids": list(request.stop_token_ids),
        "seed": request.seed,
    }
    if request.logit_bias:
        params["logit_bias"] = request.biases()
    return params


def _openai_choice(answer: Any) -> Completion:
    choices = answer["choices"]
    if len(choices) != 1:
        raise MalformedAnswerError(f"{len(choices)} choices where one was asked for")
    [choice] = choices
    usage = answer.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    return Completion(
        _ids(choice, "token_ids"),
        ended=choice["finish_reason"] == "stop",
        num_prompt_tokens=_count(usage.get("prompt_tokens")),
        num_cached_tokens=_count(details.get("cached_tokens")),
    )


def _ids(holder: Any, name: str) -> tuple[int, ...]:
    ids = holder.get(name)
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise MalformedAnswerError(f"no token ids in `{name}`")
    return tuple(ids)


def _count(value: Any) -> int:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return int(value) if is_number else 0

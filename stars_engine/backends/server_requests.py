"""Translate draft requests for servers, which know nothing of earlier segments."""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Iterator, Sequence

from stars_engine.backends.base import DraftRequest
from stars_engine.config import SamplingParams
from stars_engine.errors import ConfigError, Problem
from stars_engine.remote.dialects import CompletionRequest, Dialect

_MAX_BIAS = 100.0  # servers clamp biases to this


def check_supported(sampling: SamplingParams, dialect: Dialect) -> None:
    """Check that a server can follow the sampling settings.

    Raises:
        ConfigError: It cannot; each such field is named.
    """
    problems = list(_problems(sampling, dialect))
    if problems:
        raise ConfigError("SamplingParams", problems)


def _problems(sampling: SamplingParams, dialect: Dialect) -> Iterator[Problem]:
    fields = SamplingParams.model_fields
    changed = {name for name in fields if getattr(sampling, name) != fields[name].default}
    if sampling.grammar is not None:
        yield Problem(
            "grammar",
            "a server begins a grammar anew in every segment. Hint: use a TransformersModel in "
            "this process for answers under a grammar, or Chat(constrain_tools=False)",
        )
    for name in sorted(changed & dialect.unsupported):
        yield Problem(
            name,
            f"{getattr(sampling, name)!r}: servers of the dialect {dialect.name!r} cannot follow "
            "it across segments. Hint: leave it out, or use vLLM",
        )
    if sampling.temperature > dialect.max_temperature:
        yield Problem(
            "temperature",
            f"{sampling.temperature:g} is above {dialect.max_temperature:g}, the highest that "
            f"servers of the dialect {dialect.name!r} allow. Hint: lower it",
        )
    biased = {"logit_bias", "presence_penalty", "frequency_penalty"} & changed
    if sampling.repetition_penalty != 1 and biased:
        yield Problem(
            "repetition_penalty",
            f"servers apply it after the biases, so it cannot be used with {', '.join(biased)}. "
            "Hint: use one of them",
        )
    for token, bias in (sampling.logit_bias or {}).items():
        if abs(bias) > _MAX_BIAS and bias != -math.inf:
            yield Problem(
                "logit_bias",
                f"{{{token}: {bias}}}: servers clamp biases to -100..100. Hint: use a value in "
                "this range, or -inf to forbid the token",
            )


def completion_request(
    request: DraftRequest, drafted: Sequence[int], stop_ids: Sequence[int]
) -> CompletionRequest:
    """Return the request for the tokens of a draft after those that are drafted already.

    Frequency and presence penalties of the tokens before this request are biases, because a server
    counts only what it draws itself.

    Args:
        request: The draft request.
        drafted: Tokens of the draft so far.
        stop_ids: Tokens that end the text.
    """
    sampling = request.sampling
    position = request.num_completion_tokens + len(drafted)
    max_tokens = len(request.uniforms) - len(drafted)
    bias = dict(sampling.logit_bias or {})
    for token, count in _counts(request, drafted).items():
        penalty = sampling.presence_penalty + count * sampling.frequency_penalty
        if penalty:
            bias[token] = bias.get(token, 0.0) - penalty
    return CompletionRequest(
        token_ids=(*request.token_ids, *drafted),
        max_tokens=max_tokens,
        seed=seed_of(request.uniforms[len(drafted) :]),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=bias,
        min_tokens=max(0, min(sampling.min_tokens - position, max_tokens)),
        stop_token_ids=tuple(stop_ids),
    )


def valid_length(request: DraftRequest, drafted: Sequence[int], new: Sequence[int]) -> int:
    """Return how many new tokens were drawn with the penalties that they should have.

    A server subtracts the presence penalty when it first draws a token itself, so a token that
    occurred before is penalized twice from then on. The tokens after it are drawn again.
    """
    if not request.sampling.presence_penalty:
        return len(new)
    known = _counts(request, drafted).keys()
    return next((size for size, token in enumerate(new, start=1) if token in known), len(new))


def seed_of(uniforms: Sequence[float]) -> int:
    """Return a seed below 2**63 that is a function of the uniforms of a draw.

    The uniforms are counted noise, so the seed depends on the request's seed, its prompt, the
    position and the attempt, and on nothing else.
    """
    data = struct.pack(f"<{len(uniforms)}d", *uniforms)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def _counts(request: DraftRequest, drafted: Sequence[int]) -> Counter[int]:
    return Counter((*request.token_ids[request.num_prompt_tokens :], *drafted))

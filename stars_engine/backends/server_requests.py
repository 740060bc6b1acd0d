"""Translate draft requests for models that know nothing of earlier segments: servers and vLLM."""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest
from stars_engine.config import SamplingParams
from stars_engine.errors import ConfigError, GenerationError, Problem
from stars_engine.remote.dialects import Completion, CompletionRequest, Dialect

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
            f"{getattr(sampling, name)!r} is not supported across segments by servers of the "
            f"dialect {dialect.name!r}. Hint: leave it out, or use a TransformersModel",
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
            "servers apply it after the biases, so it cannot be used with "
            f"{', '.join(sorted(biased))}. Hint: use either repetition_penalty or the others",
        )
    for token, bias in (sampling.logit_bias or {}).items():
        if abs(bias) > _MAX_BIAS and bias != -math.inf:
            yield Problem(
                "logit_bias",
                f"{{{token}: {bias}}}: servers clamp biases to -100..100. Hint: use a value in "
                "this range, or -inf to forbid the token",
            )


class DraftInParts:
    """One draft, as requests to a model that knows nothing of earlier segments.

    Usually it is one request, and one more for the lookahead. With a presence penalty, a model
    subtracts the penalty when it first draws a token itself, so a token that occurred before is
    penalized twice from then on. The draft is cut there, and continued by another request. Servers
    without `min_tokens` get one request for the tokens before it, which forbids all stop tokens.

    Args:
        request: The draft request.
        stop_ids: Tokens that end the text.
        has_min_tokens: Whether the model follows `min_tokens` of a request.
    """

    def __init__(
        self,
        request: DraftRequest,
        stop_ids: Collection[int],
        *,
        has_min_tokens: bool = True,
    ) -> None:
        self._request, self._stop_ids = request, frozenset(stop_ids)
        self._has_min_tokens = has_min_tokens
        self._ids: list[int] = list(request.forced)
        self._ahead: list[int] = []
        self._ended = False

    def next_request(self) -> CompletionRequest | None:
        """Return the next request; None if the draft is complete."""
        if self._ended:
            return None
        request = self._request
        if len(self._ids) < len(request.uniforms):
            return self._asked(self._ids, len(request.uniforms) - len(self._ids), request.sampling)
        if len(self._ahead) < request.lookahead:
            greedy = request.sampling.replace(temperature=0)
            count = request.lookahead - len(self._ahead)
            return self._asked([*self._ids, *self._ahead], count, greedy)
        return None

    def add(self, asked: CompletionRequest, completion: Completion) -> None:
        """Take the answer to a request.

        Raises:
            ShortCompletionError: The text neither ended nor has the length that was asked for.
        """
        ids = completion.token_ids[: asked.max_tokens]
        end = next((at for at, token in enumerate(ids) if token in self._stop_ids), None)
        if end is not None:
            ids = ids[: end + 1]
        elif len(ids) < asked.max_tokens:
            raise ShortCompletionError(asked, completion)
        ids = ids[: self._valid_len(ids)]
        if len(self._ids) < len(self._request.uniforms):
            self._ids += ids
        else:
            self._ahead += ids
        self._ended = ids[-1] in self._stop_ids

    @property
    def draft(self) -> Draft:
        """The draft, once it is complete."""
        return Draft(tuple(self._ids), tuple(self._ahead))

    def _asked(
        self, drafted: Sequence[int], count: int, sampling: SamplingParams
    ) -> CompletionRequest:
        """Return a request for the tokens after those that are drafted already.

        Frequency and presence penalties of the tokens before the request are biases, because a
        model counts only what it draws in answer to the request.
        """
        request = self._request
        position = request.num_completion_tokens + len(drafted)
        bias = dict(sampling.logit_bias or {})
        for token, number in self._counts().items():
            penalty = sampling.presence_penalty + number * sampling.frequency_penalty
            if penalty:
                bias[token] = bias.get(token, 0.0) - penalty
        min_tokens = max(0, min(sampling.min_tokens - position, count))
        if min_tokens and not self._has_min_tokens:
            count = min_tokens
            bias |= dict.fromkeys(self._stop_ids, -math.inf)
        return CompletionRequest(
            token_ids=(*request.token_ids, *drafted),
            max_tokens=count,
            seed=seed_of(request.uniforms[len(drafted) :]),
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=bias,
            min_tokens=min_tokens,
            stop_token_ids=tuple(sorted(self._stop_ids)),
        )

    def _valid_len(self, new: Sequence[int]) -> int:
        """Return how many new tokens were drawn with the penalties that they should have."""
        if not self._request.sampling.presence_penalty:
            return len(new)
        known = self._counts().keys()
        return next((size for size, token in enumerate(new, start=1) if token in known), len(new))

    def _counts(self) -> Counter[int]:
        request = self._request
        return Counter((*request.token_ids[request.num_prompt_tokens :], *self._ids, *self._ahead))


class ShortCompletionError(Exception):
    """A completion neither ended the text nor has the length that was asked for.

    Attributes:
        asked: The request.
        completion: The answer.
    """

    def __init__(self, asked: CompletionRequest, completion: Completion) -> None:
        super().__init__(f"{len(completion.token_ids)} of {asked.max_tokens} tokens")
        self.asked, self.completion = asked, completion


def refuse_entropies(request: DraftRequest) -> None:
    """Refuse to report entropies.

    Raises:
        GenerationError: The request asks for them.
    """
    if request.entropies:
        raise GenerationError(
            "segment_end='entropy' needs entropies of the whole vocabulary, which vLLM and servers "
            "do not return. Hint: use segment_end='length' or 'sentence', or a TransformersModel"
        )


def seed_of(uniforms: Sequence[float]) -> int:
    """Return a seed below 2**63 that is a function of the uniforms of a draw.

    The uniforms are counted noise, so the seed depends on the request's seed, its prompt, the
    position and the attempt, and on nothing else.
    """
    data = struct.pack(f"<{len(uniforms)}d", *uniforms)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1

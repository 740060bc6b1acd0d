"""A language model and a reward model that are small enough to enumerate."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from math import log
from typing import Any, Protocol

from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest
from stars_engine.config import SamplingParams
from stars_engine.grammars import Grammars
from stars_engine.protocols import has_members
from stars_engine.types import RewardInput, Score


class Choice(Protocol):
    """A uniform that chooses an outcome itself; the enumerator injects these."""

    def choose(self, probs: Sequence[float]) -> int:
        """Return the index of one outcome."""


class TabularModel:
    """A `LanguageModel` defined by a table from completions to next-token probabilities.

    Each token is one piece of text. Of the sampling parameters, only stop conditions, a grammar and
    temperature 0 (which takes the likeliest token) have an effect.

    Args:
        pieces: Text of each token; that of `end_id` is ignored.
        next_probs: Probabilities of the next token given the completion's ids.
        end_id: The end-of-text token.
        context_len: Maximum number of tokens.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        next_probs: Callable[[tuple[int, ...]], Sequence[float]],
        *,
        end_id: int | None = None,
        context_len: int | None = None,
    ) -> None:
        self.pieces = tuple(pieces)
        self.next_probs = next_probs
        self.end_id = end_id
        self.context_len = context_len
        self.vocab_size = len(pieces)

    @cached_property
    def grammars(self) -> Grammars:
        """Grammars over the pieces."""
        ends = [] if self.end_id is None else [self.end_id]
        pieces = ["" if token in ends else piece for token, piece in enumerate(self.pieces)]
        return Grammars([piece.encode() for piece in pieces], ends, ends)

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """See `LanguageModel`."""
        return [self._draft(request) for request in requests]

    def check_grammar(self, sampling: SamplingParams) -> None:
        """See `LanguageModel`."""
        if sampling.grammar is not None:
            self.grammars.start(sampling.grammar)

    def is_end(self, token: int, sampling: SamplingParams) -> bool:
        """See `LanguageModel`."""
        return token == self.end_id or token in sampling.stop_token_ids

    def completion_text(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> tuple[str, int]:
        """See `LanguageModel`."""
        return "".join(self.pieces[token] for token in ids if token != self.end_id), len(ids)

    def encode_continuation(self, text: str) -> list[int]:
        """Encode text whose characters are tokens."""
        return [self.pieces.index(character) for character in text]

    def _draft(self, request: DraftRequest) -> Draft:
        completion = request.token_ids[request.num_prompt_tokens :]
        grammar = None
        if request.sampling.grammar is not None:
            grammar = self.grammars.start(request.sampling.grammar)
            grammar.consume(completion)
        drafted: list[int] = []
        entropies: list[float] = []
        uniforms: list[Any] = [*request.uniforms, *[None] * request.lookahead]
        for step, uniform in enumerate(uniforms):
            probs = self.next_probs((*completion, *drafted))
            entropies.append(-sum(prob * log(prob) for prob in probs if prob > 0))
            if grammar is not None:
                [allowed] = self.grammars.allowed([grammar], request.sampling.stop_token_ids)
                probs = [prob * may for prob, may in zip(probs, allowed.tolist(), strict=True)]
                probs = [prob / sum(probs) for prob in probs]
            if step < len(request.forced):
                token = request.forced[step]
            elif uniform is None or request.sampling.temperature == 0:
                token = max(range(len(probs)), key=probs.__getitem__)  # the first on ties
            elif has_members(uniform, Choice):
                token = uniform.choose(probs)
            else:
                cdf = list(accumulate(probs))
                token = min(bisect_right(cdf, uniform * cdf[-1]), len(cdf) - 1)
            drafted.append(token)
            if self.is_end(token, request.sampling):
                break
            if grammar is not None:
                grammar.consume([token])
        cut = len(request.uniforms)
        return Draft(
            tuple(drafted[:cut]),
            tuple(drafted[cut:]),
            tuple(entropies[: len(drafted[:cut])]) if request.entropies else (),
        )


class TableReward:
    """A `RewardModel` defined by a table of completion texts.

    Args:
        rewards: Reward of each completion text.
        default: Reward of texts that are not in the table.
        vetoed: Texts below the veto floor.
    """

    def __init__(
        self,
        rewards: Mapping[str, float],
        default: float = 0.0,
        vetoed: frozenset[str] = frozenset(),
    ) -> None:
        self._rewards, self._default, self._vetoed = rewards, default, vetoed

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
        return [
            Score(self._rewards.get(item.text, self._default), vetoed=item.text in self._vetoed)
            for item in inputs
        ]

"""Parse drafts into candidates: sentence borders, stop strings, end of text, the token limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stars_engine.algorithm.features import Features
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.tokenization.stop_strings import stop_strings
from stars_engine.tokenization.text import ends_sentence
from stars_engine.types import Attempt, FinishReason


@dataclass(frozen=True, slots=True)
class Draft:
    """The output of a language model for one draft request.

    Attributes:
        token_ids: The candidate. It is shorter than requested only if it ends the text.
        lookahead_ids: The greedy continuation of the candidate, as temperature 0 draws it: the
            likeliest token under penalties and biases, the lowest id on ties. It is shorter than
            requested if a token ends the text, which is included, or if no token can be drawn. It
            is empty if the candidate ends the text.
        entropies: For each token of the candidate, the entropy in nats of the model's distribution
            before it was drawn, at temperature 1 and without filters; empty if not requested.
        features: Features of all its tokens, for the probes of the request; see `features`.
        alternative: The alternative that proposed it, as a position in `AlignParams.alternatives`;
            None for the plain prompt. The engine sets it.
    """

    token_ids: tuple[int, ...]
    lookahead_ids: tuple[int, ...] = ()
    entropies: tuple[float, ...] = ()
    features: Features = field(default_factory=dict, compare=False, repr=False)
    alternative: int | None = None


class Detokenizer(Protocol):
    """The part of a language model that turns its tokens into text."""

    def is_end(self, token: int, sampling: SamplingParams) -> bool:
        """Return whether the token ends the text."""

    def completion_text(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> tuple[str, int]:
        """Decode a completion up to its last complete character; see `Codec.completion_text`."""

    def encode_continuation(self, text: str) -> list[int]:
        """Encode text that continues other text, without special tokens."""


@dataclass(frozen=True, slots=True)
class ParsedDraft:
    """Drafted token ids, parsed as the continuation of a prefix.

    Attributes:
        size: Number of ids used: up to and including the one that ends the answer.
        text: The whole completion including them, cut before a stop string or an incomplete
            character.
        ids: The same completion as token ids.
        finish_reason: Why the answer would end here, or None.
    """

    size: int
    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A drafted segment, parsed as the continuation of its prefix.

    Attributes:
        token_ids: The segment's ids, up to and including the one that ends it or the answer.
        text: The whole completion including it, cut before a stop string or an incomplete
            character.
        finish_reason: Why the answer would end with it, or None.
        scored: The completion as the reward model reads it: with the lookahead, if there is one.
        num_lookahead_tokens: Lookahead tokens that the reward model sees.
        num_generated_tokens: All tokens generated for it, including those after its end.
        features: Features of the draft's tokens.
        alternative: See `Draft`.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    scored: ParsedDraft
    num_lookahead_tokens: int
    num_generated_tokens: int
    features: Features = field(default_factory=dict, compare=False, repr=False)
    alternative: int | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """A candidate with its verdict."""

    candidate: Candidate
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class DraftParser:
    """Parses drafts that continue one prefix.

    Attributes:
        model: Turns the tokens into text.
        prompt_ids: The prompt.
        token_ids: The completion so far.
        text: The text of the completion so far.
        sampling: Stop conditions and the token limit.
        align: Settings that say where segments end.
    """

    model: Detokenizer
    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    text: str
    sampling: SamplingParams
    align: AlignParams

    def parse(self, draft: Draft) -> Candidate:
        """Parse a draft, followed by its lookahead unless the answer ends before it."""
        token_ids = draft.token_ids
        if self.align.segment_end == "sentence":
            token_ids = token_ids[: self._sentence_len(token_ids)]
        elif self.align.segment_end == "entropy":
            token_ids = token_ids[: self._certain_len(draft)]
        segment = scored = self._parse(token_ids)
        if draft.lookahead_ids and segment.finish_reason is None:
            scored = self._parse((*token_ids, *draft.lookahead_ids))
        return Candidate(
            token_ids=token_ids[: segment.size],
            text=segment.text,
            finish_reason=segment.finish_reason,
            scored=scored,
            # Both find a stop string at the same token, so `scored` is never shorter.
            num_lookahead_tokens=scored.size - segment.size,
            num_generated_tokens=len(draft.token_ids) + len(draft.lookahead_ids),
            features=draft.features,
            alternative=draft.alternative,
        )

    def _sentence_len(self, draft: Sequence[int]) -> int:
        """Return after how many tokens the first sentence ends; all of them if none does.

        Whether a sentence ends after a token depends only on the tokens up to it. Only the draft
        is decoded, as a continuation of the prefix, so the time does not grow with the answer. A
        token that leaves a character incomplete does not end a sentence.
        """
        prefix = (*self.prompt_ids, *self.token_ids)
        for size in range(self.align.shortest_segment, len(draft)):
            text, num_ids = self.model.completion_text(prefix, draft[:size])
            if num_ids == size and ends_sentence(text):
                return size
        return len(draft)

    def _certain_len(self, draft: Draft) -> int:
        """Return how many tokens come before the first uncertain one; all of them if there is none.

        The uncertain token begins the next segment, in which it is drawn again.
        """
        limit = self.align.max_entropy
        assert limit is not None
        length = len(draft.token_ids)
        sizes = range(self.align.shortest_segment, length)
        return next((size for size in sizes if draft.entropies[size] >= limit), length)

    def _parse(self, draft: Sequence[int]) -> ParsedDraft:
        ended = self.model.is_end(draft[-1], self.sampling)
        body = draft[:-1] if ended else draft  # an end-of-text token has no text
        text, ids = self._decode(body)
        # A stop string may start in an earlier segment, but cannot end there.
        start = max(len(self.text), self._len_before_stops(body))
        if stop_strings(self.sampling.stop).find(text, ends_after=start) is not None:
            size, found = self._first_stop(body, start)
            text = text[:found]
            return ParsedDraft(size, text, self._ids_of(text, ids), "stop")
        reason: FinishReason | None = "stop" if ended else None
        if reason is None and len(self.token_ids) + len(draft) >= self.sampling.max_tokens:
            reason = "length"
        return ParsedDraft(len(draft), text, ids, reason)

    def _decode(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Return the text of the completion with `ids` appended, and the ids that it covers.

        Accepted text never changes, even if the tokenizer would decode it differently now.
        """
        whole = (*self.token_ids, *ids)
        text, size = self.model.completion_text(self.prompt_ids, whole)
        if not text.startswith(self.text):
            tail, size = self.model.completion_text((*self.prompt_ids, *self.token_ids), ids)
            text, size = self.text + tail, len(self.token_ids) + size
        return text, whole[:size]

    def _len_before_stops(self, body: Sequence[int]) -> int:
        """Return the length of the text in which no stop string ends the answer."""
        num_left = self.sampling.min_tokens - len(self.token_ids)
        if num_left <= 0 or not self.sampling.stop:
            return 0
        return len(self._decode(body[:num_left])[0])

    def _first_stop(self, body: Sequence[int], start: int) -> tuple[int, int]:
        """Return after how many drafted tokens a stop string is complete, and its position.

        Of several stop strings, the one that is complete first counts, as if tokens came one by
        one. So the result does not depend on where segments end.
        """
        for size in range(1, len(body) + 1):
            text, _ = self._decode(body[:size])
            found = stop_strings(self.sampling.stop).find(text, ends_after=start)
            if found is not None:
                return size, found
        raise AssertionError("the whole text contains a stop string")

    def _ids_of(self, text: str, ids: Sequence[int]) -> tuple[int, ...]:
        """Return ids for `text`, a truncated completion: keep whole tokens and encode the rest."""
        for size in range(len(ids), -1, -1):
            part, used = self.model.completion_text(self.prompt_ids, ids[:size])
            if text.startswith(part) and used == size:
                return (*ids[:size], *self.model.encode_continuation(text[len(part) :]))
        return tuple(self.model.encode_continuation(text))

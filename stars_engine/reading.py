"""Drafts read into candidates: borders of sentences, stop strings, end of text, the token limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stars_engine.backends.base import Draft, LanguageModel
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.text import ends_sentence, find_stop
from stars_engine.types import FinishReason


@dataclass(frozen=True, slots=True)
class Reading:
    """Token ids read as the continuation of a prefix.

    Attributes:
        size: How many of the ids are read: up to and including what ended the answer.
        text: The whole completion with them, cut before a stop string or an incomplete character.
        ids: The same completion as token ids.
        finish_reason: Why the answer would end with them, or None.
    """

    size: int
    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A drafted segment, read as a continuation of its prefix.

    Attributes:
        token_ids: The segment's ids, up to and including what ended it or the answer.
        text: The whole completion with it, cut before a stop string or an incomplete character.
        finish_reason: Why the answer would end with it, or None.
        shown: The completion as the reward model reads it: with the lookahead, if there is one.
        num_lookahead_tokens: Tokens of the lookahead that the reward model reads.
        num_generated_tokens: Tokens generated for all this; those behind its end are among them.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    shown: Reading
    num_lookahead_tokens: int
    num_generated_tokens: int


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads drafts that continue one prefix.

    Attributes:
        model: Whose tokens they are.
        prompt_ids: The prompt.
        token_ids: The completion so far.
        text: Its text.
        sampling: Stop conditions and the token limit.
        align: Where segments end.
    """

    model: LanguageModel
    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    text: str
    sampling: SamplingParams
    align: AlignParams

    def read(self, draft: Draft) -> Candidate:
        """Read a draft, and its lookahead behind it unless the answer ends before."""
        token_ids = draft.token_ids
        if self.align.segment_end == "sentence":
            token_ids = token_ids[: self._sentence_len(token_ids)]
        segment = shown = self._read(token_ids)
        if draft.lookahead_ids and segment.finish_reason is None:
            shown = self._read((*token_ids, *draft.lookahead_ids))
        return Candidate(
            token_ids=token_ids[: segment.size],
            text=segment.text,
            finish_reason=segment.finish_reason,
            shown=shown,
            # A stop string is found at its first token in both readings: `shown` is never shorter.
            num_lookahead_tokens=shown.size - segment.size,
            num_generated_tokens=len(draft.token_ids) + len(draft.lookahead_ids),
        )

    def _sentence_len(self, draft: Sequence[int]) -> int:
        """Return after how many tokens a sentence ends first; all of them if none does.

        Each length is decided on the tokens up to it alone. The text is decoded behind the prefix,
        so that the time this takes does not grow with the answer; a token that leaves a character
        incomplete ends no sentence.
        """
        prefix = (*self.prompt_ids, *self.token_ids)
        for size in range(self.align.shortest_segment, len(draft)):
            text, num_ids = self.model.completion_text(prefix, draft[:size])
            if num_ids == size and ends_sentence(text):
                return size
        return len(draft)

    def _read(self, draft: Sequence[int]) -> Reading:
        ended = self.model.is_end(draft[-1], self.sampling)
        body = draft[:-1] if ended else draft  # an end-of-text token has no text
        text, ids = self._decode(body)
        # A stop string may have begun in an earlier segment, but did not end there.
        start = max(len(self.text), self._len_before_stops(body))
        if find_stop(text, self.sampling.stop, ends_after=start) is not None:
            size, found = self._first_stop(body, start)
            text = text[:found]
            return Reading(size, text, self._ids_of(text, ids), "stop")
        reason: FinishReason | None = "stop" if ended else None
        if reason is None and len(self.token_ids) + len(draft) >= self.sampling.max_tokens:
            reason = "length"
        return Reading(len(draft), text, ids, reason)

    def _decode(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]]:
        """Return the completion's text with `ids` appended, and the ids that the text stands for.

        Text once accepted is never taken back, also where a tokenizer's decoder would rewrite it.
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
        """Return how many drafted tokens it took until a stop string was complete, and its place.

        Of several the first to be complete counts, as if tokens came one by one: which one that is
        does not depend on where segments end.
        """
        for size in range(1, len(body) + 1):
            text, _ = self._decode(body[:size])
            found = find_stop(text, self.sampling.stop, ends_after=start)
            if found is not None:
                return size, found
        raise AssertionError("there is one in the whole text")

    def _ids_of(self, text: str, ids: Sequence[int]) -> tuple[int, ...]:
        """Return ids for `text`, a cut completion: whole tokens kept, the rest encoded anew."""
        for size in range(len(ids), -1, -1):
            part, used = self.model.completion_text(self.prompt_ids, ids[:size])
            if text.startswith(part) and used == size:
                return (*ids[:size], *self.model.encode_continuation(text[len(part) :]))
        return tuple(self.model.encode_continuation(text))

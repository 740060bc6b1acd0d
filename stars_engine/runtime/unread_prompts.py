"""The prompts of a call that have not been read, whose answers can still end."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stars_engine.algorithm.noise import CounterNoise, fresh_seed
from stars_engine.algorithm.rollout import Rollout
from stars_engine.chat.deltas import UnreadReplies
from stars_engine.config import SamplingParams
from stars_engine.messages import Chat
from stars_engine.runtime.answers import CheckedPrompt
from stars_engine.types import RewardPrompt

if TYPE_CHECKING:
    from stars_engine.runtime.request_group import PromptRequest, RequestGroup

READ_FIRST = 1024  # prompts of a call that are read before its first answer starts
_LARGE_EFFORT = 64  # of a prompt that is prepared in the background; 1 for others


@dataclass(slots=True)
class UnreadPrompts:
    """How far the prompts of a group have been read. One thread uses it.

    The first prompts are read before any answer starts, so that most errors of prompts are found
    before anything is generated. The rest is read while the first answers are generated.

    Attributes:
        may_start: Whether enough prompts have been read for the first answer to start.
        num_prompts: Number of prompts that have been read, or skipped.
        num_answers: Number of answers of these prompts.
    """

    group: RequestGroup
    may_start: bool = False
    num_prompts: int = 0
    num_answers: int = 0
    _effort: int = 0
    _ended: set[int] = field(default_factory=set)  # prompts whose answers ended before
    _deadlines: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def effort(self) -> int:
        """How much has been read; 1 for each prompt, and more for large ones."""
        return self.num_prompts + self._effort

    @property
    def next_expiry_s(self) -> float | None:
        """When the next deadline of a prompt passes that has not been read (monotonic clock)."""
        while self._deadlines and not self._is_unread(self._deadlines[0][1]):
            heapq.heappop(self._deadlines)
        return self.group.submitted_s + self._deadlines[0][0] if self._deadlines else None

    def note_deadlines(self) -> None:
        """Note the deadlines of all prompts before the first is read."""
        index = len(self.group.resumed)
        for prompt_index, request in enumerate(self.group.prompts):
            if request.align.deadline_s is not None:
                self._deadlines.append((request.align.deadline_s, prompt_index, index))
            index += request.num_answers
        heapq.heapify(self._deadlines)

    def note_wait(self) -> None:
        """Note that the next prompt is prepared in the background."""
        self._effort += _LARGE_EFFORT

    def note_read(self, request: PromptRequest) -> None:
        """Note that the next prompt was read."""
        self.num_prompts += 1
        self.num_answers += request.num_answers

    def is_ended(self, prompt_index: int) -> bool:
        """Whether the answers of a prompt ended before it was read."""
        return prompt_index in self._ended

    def end_next_overdue(self, now_s: float) -> bool:
        """Make the answers of a prompt whose deadline has passed pending; False without one."""
        expires_at_s = self.next_expiry_s
        if expires_at_s is None or expires_at_s > now_s:
            return False
        _, prompt_index, index = heapq.heappop(self._deadlines)
        self._ended.add(prompt_index)
        self.group.pending.add(_empty_prompt(self.group, prompt_index, index))
        return True

    def give_up(self) -> None:
        """Stop reading; the answers of prompts that have not been read stay empty."""
        group = self.group
        group.reading = None
        ended = sum(group.prompts[index].num_answers for index in self._ended_ahead())
        num_answers = group.num_answers - len(group.resumed) - self.num_answers - ended
        group.pending.add_later(
            empty_prompts(group, self.num_prompts, self.num_answers, self._ended), num_answers
        )
        self.num_prompts, self.num_answers = len(group.prompts), group.num_answers
        self._deadlines.clear()

    def _ended_ahead(self) -> Iterator[int]:
        return (index for index in self._ended if index >= self.num_prompts)

    def _is_unread(self, prompt_index: int) -> bool:
        return prompt_index >= self.num_prompts and prompt_index not in self._ended


def empty_prompts(
    group: RequestGroup, start: int = 0, num_before: int = 0, ended: set[int] | None = None
) -> Iterator[CheckedPrompt]:
    """Yield prompts of a group without their tokens, for answers that never start.

    Args:
        group: The group.
        start: The position of the first prompt.
        num_before: Number of answers of earlier prompts.
        ended: Prompts to leave out.
    """
    index = len(group.resumed) + num_before
    for prompt_index in range(start, len(group.prompts)):
        if ended is None or prompt_index not in ended:
            yield _empty_prompt(group, prompt_index, index)
        index += group.prompts[prompt_index].num_answers


def _empty_prompt(group: RequestGroup, prompt_index: int, index: int) -> CheckedPrompt:
    request = group.prompts[prompt_index]
    sampling = request.sampling or SamplingParams()
    seed = fresh_seed() if sampling.seed is None else sampling.seed
    start = Rollout(
        prompt_ids=(),
        reward_prompt=RewardPrompt("", ()),
        sampling=sampling,
        align=request.align,
        noise=CounterNoise(seed=seed, prompt_ids=(), sample_index=0),
        seed=seed,
        prompt_index=prompt_index,
    )
    replies = UnreadReplies() if isinstance(request.prompt, Chat) else None
    return CheckedPrompt(index, request.num_answers, start, replies)

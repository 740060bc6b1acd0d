"""Scores that are computed on the engine's thread: light ones at once, heavy ones between steps.

A reward model computes a long prompt when it first sees it, and a truncated one for each candidate.
Such prompts wait in line, one beside the other, so that other requests go on meanwhile.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from statistics import median_low
from typing import NamedTuple

from stars_engine.errors import RewardError, RewardOutcome
from stars_engine.rewards.prompt_memo import PromptMemo
from stars_engine.rewards.reward_requests import RewardRequest, RoutedRequest, score_now
from stars_engine.types import RewardPrompt, Score

PIECE_S = 0.05  # predicted duration of heavy scores that are computed together
HEAVY_S = 0.02  # of one score, or the usual duration of a batch of light ones if that is more
SHARE = 1 / 3  # of the time that heavy scores take beside steps
_CHARS_PER_TOKEN = 4
_TOKEN_S = 1e-4  # assumed at first, to compute a token of a prompt
_LEAST_TOKENS = 256  # of a measurement
_NUM_LENGTHS = 32  # of answers to a prompt
_WEIGHT = 0.3  # of the latest measurement in a mean
_NUM_LIGHT = 9  # batches of light scores whose durations are remembered


class ScoreQueue:
    """Computes scores in pieces. Methods run on the engine's thread.

    The cost of a prompt's scores is predicted by the latest ones, and by its length at first.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._costs: PromptMemo[_Cost] = PromptMemo()
        self._waiting: OrderedDict[int, deque[RoutedRequest]] = OrderedDict()  # by prompt
        self._light_s: deque[float] = deque(maxlen=_NUM_LIGHT)
        self._token_s = _TOKEN_S
        self._next_s = 0.0  # when heavy scores may go on beside steps

    @property
    def has_work(self) -> bool:
        """Whether any score waits."""
        return bool(self._waiting)

    def add(self, asked: Sequence[RoutedRequest]) -> None:
        """Compute light scores, and let heavy ones wait."""
        usual_s = median_low(self._light_s) if self._light_s else 0.0
        heavy_s = max(HEAVY_S, usual_s)
        light: list[RoutedRequest] = []
        for item in asked:
            prompt = item.request.input.prompt
            if self._cost(prompt) > heavy_s:
                self._waiting.setdefault(id(prompt), deque()).append(item)
            else:
                light.append(item)
        if light:
            self._light_s.append(self._score(light))

    def run(self, *, beside_steps: bool) -> None:
        """Compute a piece of the heavy scores; beside steps only if their share is not used up."""
        if not self._waiting or (beside_steps and self._clock() < self._next_s):
            return
        seconds = self._score(self._next_piece())
        self._next_s = self._clock() + seconds * (1 / SHARE - 1)

    def clear(self) -> None:
        """Answer all that wait with an error, because the engine ends them."""
        waiting, self._waiting = self._waiting, OrderedDict()
        for items in waiting.values():
            _refuse(items)

    def _next_piece(self) -> list[RoutedRequest]:
        """Take scores of the prompts in turn, at least one."""
        piece: list[RoutedRequest] = []
        predicted_s = 0.0
        for key, items in list(self._waiting.items()):
            while items:
                if not items[0].request.requester.closed:
                    predicted_s += self._cost(items[0].request.input.prompt)
                    if piece and predicted_s > PIECE_S:
                        self._waiting.move_to_end(key)
                        return piece
                    piece.append(items[0])
                items.popleft()
            del self._waiting[key]
        return piece

    def _score(self, items: Sequence[RoutedRequest]) -> float:
        """Compute scores, and return how long it took."""
        counted = [_Counted(item) for item in items]
        started_s = self._clock()
        try:
            score_now([each.routed for each in counted])
        except BaseException:
            _refuse(items)
            raise
        seconds = self._clock() - started_s
        self._note(counted, seconds)
        return seconds

    def _note(self, counted: Sequence[_Counted], seconds: float) -> None:
        """Record what a score of each prompt costs: an equal share of the batch."""
        known = {id(each.prompt): self._costs.get(each.prompt) for each in counted}
        if all(each.is_computed(known[id(each.prompt)]) for each in counted):
            computed = {(id(each.prompt), each.len_answer): each.num_tokens for each in counted}
            num_tokens = sum(computed.values())
            if num_tokens >= _LEAST_TOKENS:
                self._token_s += _WEIGHT * (seconds / num_tokens - self._token_s)
        for each in counted:
            before = self._costs.get(each.prompt)
            lengths = () if before is None else before.lengths
            whole_s = each.num_tokens * self._token_s if each.is_truncated else 0.0
            cost_s = max(seconds / len(counted), whole_s)
            lengths = (*lengths[-_NUM_LENGTHS:], each.len_answer)
            self._costs.set(each.prompt, _Cost(cost_s, lengths))

    def _cost(self, prompt: RewardPrompt) -> float:
        """Return the predicted seconds of one score."""
        known = self._costs.get(prompt)
        return _num_tokens(prompt) * self._token_s if known is None else known.seconds


class _Cost(NamedTuple):
    """What a score of a prompt costs, and the lengths of the latest answers to it."""

    seconds: float
    lengths: tuple[int, ...]


class _Counted:
    """A request, and what the reward model read for it.

    Attributes:
        prompt: Its prompt.
        len_answer: Tokens of its answer.
        num_tokens: Tokens that the reward model read; 0 if it does not tell.
        is_truncated: Whether the prompt was truncated.
    """

    def __init__(self, item: RoutedRequest) -> None:
        self._item = item
        self.prompt = item.request.input.prompt
        self.len_answer = len(item.request.input.token_ids)
        self.num_tokens, self.is_truncated = 0, False

    def is_computed(self, known: _Cost | None) -> bool:
        """Whether the reward model has computed the whole prompt for it.

        Answers of one length follow the same end of a truncated prompt, which is computed once.
        """
        return known is None or (self.is_truncated and self.len_answer not in known.lengths)

    @property
    def routed(self) -> RoutedRequest:
        """The request, answered through this object."""
        reward, request = self._item
        return RoutedRequest(reward, RewardRequest(request.input, self._reply, request.requester))

    def _reply(self, outcome: RewardOutcome) -> None:
        if isinstance(outcome, Score):
            self.num_tokens, self.is_truncated = outcome.num_tokens, outcome.truncated
        self._item.request.reply(outcome)


def _num_tokens(prompt: RewardPrompt) -> float:
    if prompt.token_ids is not None:
        return len(prompt.token_ids)
    num_chars = sum(len(message.content) for message in prompt.messages or ())
    return max(len(prompt.text), num_chars) / _CHARS_PER_TOKEN


def _refuse(items: Sequence[RoutedRequest] | deque[RoutedRequest]) -> None:
    for item in items:
        item.request.reply(
            RewardError("the engine ended before this reward was computed. Hint: call it again")
        )

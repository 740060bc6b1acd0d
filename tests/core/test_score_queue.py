"""Scores on the engine's thread: light ones at once, heavy ones in pieces between steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from stars_engine.errors import RewardError, RewardOutcome
from stars_engine.rewards.prompt_memo import MAX_CHARS, MAX_PROMPTS, PromptMemo
from stars_engine.rewards.reward_requests import RewardRequest, RoutedRequest
from stars_engine.runtime.score_queue import SHARE, ScoreQueue
from stars_engine.types import RewardInput, RewardPrompt, Score

LIMIT = 1000  # tokens that the reward reads
SHORT, LONG = RewardPrompt("a" * 40), RewardPrompt("b" * 1_000_000)


class Clock:
    """A clock that only the reward moves: a tenth of a millisecond per computed token."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Reward:
    """Computes a prompt once if it fits, and again for each new length if it is truncated."""

    name = "slow"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.batches: list[int] = []
        self.known: set[tuple[int, int]] = set()

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        self.batches.append(len(inputs))
        return [self._score(item) for item in inputs]

    def _score(self, item: RewardInput) -> Score:
        num_tokens = len(item.prompt.text) // 4
        truncated = num_tokens > LIMIT
        key = id(item.prompt), len(item.token_ids) if truncated else 0
        new = 1 if key in self.known else min(num_tokens, LIMIT)
        self.known.add(key)
        self.clock.now_s += 1e-4 * new
        return Score(
            float(len(item.token_ids)), num_tokens=min(num_tokens, LIMIT), truncated=truncated
        )


@dataclass
class Asker:
    closed: bool = False
    outcomes: list[RewardOutcome] = field(default_factory=list)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reward(clock: Clock) -> Reward:
    return Reward(clock)


@pytest.fixture
def scores(clock: Clock) -> ScoreQueue:
    return ScoreQueue(clock)


def asked(
    reward: Reward, prompt: RewardPrompt, count: int = 1, length: int = 3
) -> tuple[Asker, list[RoutedRequest]]:
    asker = Asker()
    item = RewardInput(prompt, "", (1,) * length)
    request = RewardRequest(item, asker.outcomes.append, asker)
    return asker, [RoutedRequest(reward, request)] * count


def test_light_scores_are_computed_at_once_in_one_batch(scores: ScoreQueue, reward: Reward) -> None:
    first, some = asked(reward, SHORT, 3)
    second, others = asked(reward, RewardPrompt("c" * 40), 4)
    scores.add([*some, *others])
    assert (len(first.outcomes), len(second.outcomes)) == (3, 4)
    assert reward.batches == [7]
    assert not scores.has_work


def test_scores_of_a_long_prompt_wait_and_light_ones_do_not(
    scores: ScoreQueue, reward: Reward
) -> None:
    long, many = asked(reward, LONG, 4)
    short, few = asked(reward, SHORT)
    scores.add([*many, *few])
    assert (len(short.outcomes), len(long.outcomes)) == (1, 0)
    assert scores.has_work
    while scores.has_work:
        scores.run(beside_steps=False)
    assert len(long.outcomes) == 4
    assert max(reward.batches[1:]) == 1


def test_a_truncated_prompt_stays_heavy_although_most_of_its_scores_are_cheap(
    scores: ScoreQueue, reward: Reward, clock: Clock
) -> None:
    for length in range(3, 8):
        _, many = asked(reward, LONG, 8, length)
        before_s = clock.now_s
        scores.add(many)
        assert clock.now_s == before_s
        while scores.has_work:
            scores.run(beside_steps=False)


def test_a_long_prompt_that_is_cached_becomes_light(scores: ScoreQueue, reward: Reward) -> None:
    prompt = RewardPrompt("d" * 3600)
    _, some = asked(reward, prompt, 2)
    scores.add(some)
    while scores.has_work:
        scores.run(beside_steps=False)
    again, others = asked(reward, prompt, 2)
    scores.add(others)
    assert len(again.outcomes) == 2


def test_heavy_scores_take_a_share_of_the_time_beside_steps(
    scores: ScoreQueue, reward: Reward, clock: Clock
) -> None:
    for length in range(6):
        scores.add(asked(reward, LONG, 1, length)[1])
    started_s, stepping_s = clock.now_s, 0.0
    while scores.has_work:
        scores.run(beside_steps=True)
        clock.now_s += 0.01  # a step
        stepping_s += 0.01
    scoring_s = clock.now_s - started_s - stepping_s
    assert scoring_s / (scoring_s + stepping_s) == pytest.approx(SHARE, abs=0.1)


def test_prompts_take_turns(scores: ScoreQueue, reward: Reward) -> None:
    first, many = asked(reward, LONG, 50)
    other, few = asked(reward, RewardPrompt("e" * 1_000_000), 2)
    scores.add(many)
    scores.add(few)
    for _ in range(4):
        scores.run(beside_steps=False)
    assert len(other.outcomes) == 2
    assert len(first.outcomes) < 50


def test_nothing_is_computed_for_requests_that_have_ended(
    scores: ScoreQueue, reward: Reward
) -> None:
    gone, many = asked(reward, LONG, 4)
    scores.add(many)
    gone.closed = True
    scores.run(beside_steps=False)
    assert not scores.has_work
    assert reward.batches == []


def test_all_that_wait_are_answered_when_the_engine_ends(
    scores: ScoreQueue, reward: Reward
) -> None:
    asker, many = asked(reward, LONG, 4)
    scores.add(many)
    scores.clear()
    assert len(asker.outcomes) == 4
    assert all(isinstance(outcome, RewardError) for outcome in asker.outcomes)
    assert not scores.has_work


def test_prompts_that_are_remembered_are_bounded_in_number_and_length() -> None:
    memo: PromptMemo[int] = PromptMemo()
    prompts = [RewardPrompt(f"{number}") for number in range(MAX_PROMPTS + 10)]
    for number, prompt in enumerate(prompts):
        memo.set(prompt, number)
    assert memo.get(prompts[0]) is None
    assert memo.get(prompts[-1]) == MAX_PROMPTS + 9
    assert memo.get(RewardPrompt(prompts[-1].text)) is None  # equal, but another object
    large = [RewardPrompt("a" * (MAX_CHARS // 2)) for _ in range(3)]
    for prompt in large:
        memo.set(prompt, 1)
    assert [memo.get(prompt) for prompt in large] == [None, 1, 1]
    assert memo.get(prompts[-1]) is None

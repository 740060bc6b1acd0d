"""With exact soft values, and thresholds at their maximum, STARS samples the aligned distribution.

The aligned distribution is pi(y | x) * exp(r(y) / beta) / Z. The soft value of a prefix is
V(y) = beta * log E[exp(r / beta) | y], so V(whole answer) = r. A segment of a prefix y is accepted
with probability exp((V(y + s) - tau) / beta) where tau is at least the largest V of any
continuation, and drawn again until one is accepted: it is distributed as q(s | y) * exp(V(y + s) /
beta) / exp(V(y) / beta), whose product over segments telescopes to the aligned distribution.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from functools import cache

import pytest

from stars_engine import AlignParams, ConstantSchedule, SamplingParams
from stars_engine.core.offline import stars
from stars_engine.schedules import FunctionSchedule, Progress
from stars_engine.testing import TableReward, TabularModel, enumerate_law
from stars_engine.testing.enumerator import TreeNoise
from tests.support.rollouts import make_rollout

PIECES = ("a", "b", "")
END = 2
MAX_TOKENS = 3
STOPPED = -1
REWARDS = {"": -0.3, "a": 0.6, "ab": 0.9, "ba": -0.8, "aab": 0.4, "bbb": 1.1, "aba": -1.2}
SAMPLING = SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, top_k=None)


def next_probs(completion: tuple[int, ...]) -> tuple[float, ...]:
    last = completion[-1] if completion else None
    first = (0.5, 0.375, 0.125) if last != 1 else (0.25, 0.5, 0.25)
    return first if len(completion) % 2 == 0 else (first[1], first[0], first[2])


def reward_of(text: str) -> float:
    return REWARDS.get(text, 0.1 * len(text))


@cache
def answers(prefix: tuple[int, ...] = ()) -> dict[tuple[int, ...], float]:
    """Every answer that begins so, with its probability given the beginning."""
    if prefix[-1:] == (END,) or len(prefix) == MAX_TOKENS:
        return {prefix: 1.0}
    return {
        whole: prob * after
        for token, prob in enumerate(next_probs(prefix))
        for whole, after in answers((*prefix, token)).items()
    }


def text_of(ids: tuple[int, ...]) -> str:
    return "".join(PIECES[token] for token in ids)


def soft_value(prefix: tuple[int, ...], beta: float) -> float:
    total = sum(p * math.exp(reward_of(text_of(y)) / beta) for y, p in answers(prefix).items())
    return beta * math.log(total)


def aligned(beta: float) -> dict[tuple[int, ...], float]:
    weights = {y: p * math.exp(reward_of(text_of(y)) / beta) for y, p in answers().items()}
    return {y: weight / sum(weights.values()) for y, weight in weights.items()}


class SoftValues:
    """The exact soft value of every prefix; the reward of a whole answer."""

    def __init__(self, beta: float, error: Callable[[str], float] = lambda _: 0.0) -> None:
        self._beta, self._error = beta, error

    def score(self, inputs: list) -> list[float]:
        return [self._one(item.token_ids, finished=item.finished) for item in inputs]

    def _one(self, ids: tuple[int, ...], *, finished: bool) -> float:
        whole = (*ids, END) if finished else tuple(ids)
        error = 0.0 if finished or len(ids) == MAX_TOKENS else self._error(text_of(whole))
        return soft_value(whole, self._beta) + error


def highest(beta: float) -> float:
    """No prefix has a larger soft value than the largest reward."""
    return max(reward_of(text_of(y)) for y in answers())


def enumerated(
    beta: float, segment_len: int, schedule: object, reward: object, **settings: object
) -> dict[tuple[int, ...], float]:
    """The distribution of the real loop."""
    model = TabularModel(PIECES, next_probs, end_id=END)
    given = {"max_attempts": 1, "on_exhausted": "stop", "num_candidates": 1, **settings}
    align = AlignParams(schedule=schedule, beta=beta, segment_len=segment_len, **given)

    def run(noise: TreeNoise) -> tuple[int, ...]:
        rollout = make_rollout(align=align, sampling=SAMPLING, noise=noise)
        for _ in stars([rollout], model, reward):
            pass
        return (*rollout.token_ids, *((STOPPED,) if rollout.finish_reason == "rejected" else ()))

    return enumerate_law(run)


def without_limit(law: dict[tuple[int, ...], float], segment_len: int) -> dict:
    """The distribution if `max_attempts` had no limit: each segment given that one is accepted.

    A segment has P(s) = q * a * (1 - rejected^M) / (1 - rejected) within M draws, so only its total
    depends on M.
    """
    reached: dict[tuple[int, ...], float] = defaultdict(float)
    stopped: dict[tuple[int, ...], float] = defaultdict(float)
    for outcome, weight in law.items():
        kept = outcome[:-1] if outcome[-1:] == (STOPPED,) else outcome
        if kept is not outcome:
            stopped[kept] += weight
        for prefix in {kept, *borders(kept, segment_len)}:
            reached[prefix] += weight
    found = {}
    for outcome, weight in law.items():
        if outcome[-1:] != (STOPPED,):
            shares = [1 - stopped[y] / reached[y] for y in borders(outcome, segment_len)]
            found[outcome] = weight / math.prod(shares)
    return found


def borders(ids: tuple[int, ...], segment_len: int) -> list[tuple[int, ...]]:
    """The prefixes at which a segment of the answer began."""
    return [ids[:start] for start in range(0, len(ids), segment_len)]


def rising(beta: float, step: float) -> FunctionSchedule:
    """A constant above the soft value of the prefix."""

    def threshold(progress: Progress) -> float:
        return progress.prefix_reward + step

    return FunctionSchedule(function=threshold, uses_prompt_reward=True)


def largest_step(beta: float, segment_len: int) -> float:
    """By how much a segment can raise the soft value at most."""
    return max(
        soft_value(y[: size + segment_len], beta) - soft_value(y[:size], beta)
        for y in answers()
        for size in range(0, len(y), segment_len)
    )


def distance(first: dict[tuple[int, ...], float], second: dict[tuple[int, ...], float]) -> float:
    """Total variation."""
    return sum(abs(first.get(y, 0.0) - second.get(y, 0.0)) for y in {*first, *second}) / 2


@pytest.mark.parametrize(
    ("beta", "segment_len", "max_attempts"),
    [
        (0.5, 1, 1),
        (0.5, 2, 1),
        (2.0, 1, 1),
        (2.0, 2, 1),
        pytest.param(0.5, 1, 2, marks=pytest.mark.slow),
    ],
)
def test_exact_soft_values_give_the_aligned_distribution(
    beta: float, segment_len: int, max_attempts: int
) -> None:
    """With one threshold for all prefixes."""
    schedule = ConstantSchedule(value=highest(beta))
    law = enumerated(beta, segment_len, schedule, SoftValues(beta), max_attempts=max_attempts)
    found, expected = without_limit(law, segment_len), aligned(beta)
    assert found.keys() == expected.keys()
    for outcome, probability in expected.items():
        assert found[outcome] == pytest.approx(probability, abs=1e-12)
    assert distance(found, answers()) > 0.05  # plain sampling


@pytest.mark.parametrize("segment_len", [1, 2])
def test_thresholds_that_follow_the_prefix_cost_the_same_everywhere(segment_len: int) -> None:
    """The mean of exp(V / beta) does not change, so every prefix accepts the same share.

    Then stopping after M draws only removes answers, by the number of their segments.
    """
    beta = 0.7
    step = largest_step(beta, segment_len)
    law = enumerated(beta, segment_len, rising(beta, step), SoftValues(beta))
    expected, accepted = aligned(beta), math.exp(-step / beta)
    for outcome, probability in expected.items():
        num_segments = len(borders(outcome, segment_len))
        assert law[outcome] == pytest.approx(probability * accepted**num_segments, abs=1e-12)


def test_what_breaks_it() -> None:
    """Values that are estimates, thresholds below the largest value, another beta."""
    beta = 0.5
    top, exact = ConstantSchedule(value=highest(beta)), SoftValues(beta)
    expected = aligned(beta)
    off = SoftValues(beta, error=lambda text: 0.3 * text.count("a") - 0.3)
    broken = {
        "estimates": without_limit(enumerated(beta, 1, top, off), 1),
        "low thresholds": without_limit(
            enumerated(beta, 1, ConstantSchedule(value=highest(beta) - 0.8), exact), 1
        ),
        "another beta": without_limit(enumerated(2 * beta, 1, top, exact), 1),
    }
    for name, law in broken.items():
        assert sum(law.values()) == pytest.approx(1.0, abs=1e-9), name
        assert distance(law, expected) > 0.01, name


@pytest.mark.slow
def test_draws_that_run_out_break_it() -> None:
    """Whether the best of them is kept, or the answer stops there."""
    beta = 0.5
    top, exact = ConstantSchedule(value=highest(beta)), SoftValues(beta)
    forced = enumerated(beta, 1, top, exact, max_attempts=2, on_exhausted="best")
    assert distance(forced, aligned(beta)) > 0.01
    stopping = enumerated(beta, 1, top, exact, max_attempts=1)
    whole = {y: p for y, p in stopping.items() if y[-1:] != (STOPPED,)}
    total = sum(whole.values())
    assert distance({y: p / total for y, p in whole.items()}, aligned(beta)) > 0.01


def test_a_whole_answer_as_one_segment_needs_no_values() -> None:
    """Then the only value that is read is the reward itself."""
    beta = 0.5
    law = enumerated(
        beta,
        MAX_TOKENS,
        ConstantSchedule(value=highest(beta)),
        TableReward({text_of(y): reward_of(text_of(y)) for y in answers()}),
    )
    found = without_limit(law, MAX_TOKENS)
    for outcome, probability in aligned(beta).items():
        assert found[outcome] == pytest.approx(probability, abs=1e-12)

"""The law of the real loop, enumerated, against the closed form (docs/algorithm.md).

Every path of the loop's randomness is run: token draws, acceptance draws, surplus candidates.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest

from stars_engine import SamplingParams
from stars_engine.core.offline import stars
from stars_engine.testing import TableReward, TabularModel, enumerate_law
from stars_engine.testing.enumerator import TreeNoise
from tests.support.closed_form import (
    END,
    PIECES,
    REWARDS,
    SENTENCES,
    Case,
    closed_form,
    next_probs,
)
from tests.support.enumerated_laws import assert_same_law
from tests.support.rollouts import make_rollout

# --- cases ---

NAN = (*((k, v) for k, v in REWARDS.items() if k != "ba"), ("ba", math.nan), ("b", math.nan))


@pytest.mark.parametrize("on_exhausted", ["best", "last", "stop"])
@pytest.mark.parametrize("num_candidates", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("thresholds", "beta", "max_attempts"),
    [
        pytest.param((0.4, 0.6), 0.5, 3, marks=pytest.mark.slow),
        ((0.4, 0.6), 0.0, 3),
        ((-1.0, 0.2), 0.3, 2),
        # Nothing is ever accepted: the forcing alone.
        pytest.param((5.0, 5.0), 0.0, 3, marks=pytest.mark.slow),
        ((5.0, math.inf), 2.0, 2),
        ((-math.inf, 0.0), 0.0, 2),
    ],
)
def test_two_segments(
    thresholds: tuple[float, ...],
    beta: float,
    max_attempts: int,
    num_candidates: int,
    on_exhausted: str,
) -> None:
    case = Case(thresholds, beta, max_attempts, on_exhausted, num_candidates, max_tokens=2)
    assert_same_law(case, closed_form)


@pytest.mark.parametrize("on_exhausted", ["best", "last", "stop"])
@pytest.mark.parametrize("num_candidates", [2, pytest.param(3, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("with_nan", [False, True])
def test_attempts_that_take_several_steps(
    num_candidates: int, on_exhausted: str, *, with_nan: bool
) -> None:
    """Five attempts in steps of 2, 2, 1, or of 3, 2, or of 4, 1."""
    rewards = NAN if with_nan else tuple(REWARDS.items())
    case = Case((0.4,), 0.5, 5, on_exhausted, num_candidates, max_tokens=1, rewards=rewards)
    assert_same_law(case, closed_form)


@pytest.mark.parametrize("on_exhausted", ["best", "last", "stop"])
@pytest.mark.parametrize("num_candidates", [1, 2])
@pytest.mark.parametrize("slope", [0.5, -1.0])
def test_thresholds_that_follow_the_prefix(
    slope: float, num_candidates: int, on_exhausted: str
) -> None:
    """RM(x, "") first, then the reward of what was kept, accepted or forced."""
    case = Case((1.0, 0.4), 0.4, 2, on_exhausted, num_candidates, max_tokens=2, slope=slope)
    assert_same_law(case, closed_form)


@pytest.mark.slow
@pytest.mark.parametrize("on_exhausted", ["best", "last"])
@pytest.mark.parametrize("num_candidates", [1, 2, 4])
@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_three_segments(beta: float, num_candidates: int, on_exhausted: str) -> None:
    case = Case((0.3, 0.5, 0.8), beta, 2, on_exhausted, num_candidates, max_tokens=3)
    assert_same_law(case, closed_form)


@pytest.mark.parametrize("num_candidates", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_segments_of_two_tokens_with_a_short_last_one(num_candidates: int) -> None:
    case = Case((0.3, 0.8), 0.4, 2, "best", num_candidates, max_tokens=3, segment_len=2)
    assert_same_law(case, closed_form)


@pytest.mark.slow
@pytest.mark.parametrize("on_exhausted", ["best", "last", "stop"])
@pytest.mark.parametrize("num_candidates", [1, 4])
@pytest.mark.parametrize(
    ("rewards", "vetoed"),
    [
        (NAN, frozenset()),
        (tuple(REWARDS.items()), frozenset({"a", "bb", "ab"})),
        (NAN, frozenset({"a", ""})),  # every first draw is ineligible
    ],
)
def test_nan_rewards_and_vetoes(
    rewards: tuple[tuple[str, float], ...],
    vetoed: frozenset[str],
    num_candidates: int,
    on_exhausted: str,
) -> None:
    case = Case((0.4, 0.6), 0.5, 3, on_exhausted, num_candidates, 2, rewards=rewards, vetoed=vetoed)
    assert_same_law(case, closed_form)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("segment_len", "min_segment_len", "num_candidates", "on_exhausted"),
    [
        # Segments of 1 and of 2 tokens, whose drafts are all of 2.
        *[(2, 1, m, rule) for m in (1, 2) for rule in ("best", "last", "stop")],
        # "a." and ".." end a segment, "." does not.
        *[(3, 2, 1, rule) for rule in ("best", "last", "stop")],
        (3, 1, 1, "best"),  # a draft may have two borders: the first one counts
    ],
)
def test_segments_that_end_with_a_sentence(
    segment_len: int, min_segment_len: int, num_candidates: int, on_exhausted: str
) -> None:
    case = Case(
        (0.3, 0.5, 0.8),
        0.4,
        2,
        on_exhausted,
        num_candidates,
        max_tokens=3,
        segment_len=segment_len,
        min_segment_len=min_segment_len,
        **SENTENCES,
    )
    assert_same_law(case, closed_form)
    without = replace(case, min_segment_len=None)
    with pytest.raises(AssertionError):  # sentence ends change the law
        assert_same_law(case, lambda _: closed_form(without))


# Every two of the three settings meet: a Latin square of lookahead, exhaustion and candidates.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("lookahead", "segment_len", "max_tokens", "num_candidates", "on_exhausted"),
    [
        (*lookahead, (1, 2, 4)[(row + column) % 3], on_exhausted)
        for row, lookahead in enumerate([(1, 1, 3), (2, 1, 3), (5, 1, 3), (1, 2, 3)])
        for column, on_exhausted in enumerate(["best", "last", "stop"])
    ],
)
def test_rewards_of_texts_with_lookahead(
    lookahead: int, segment_len: int, max_tokens: int, num_candidates: int, on_exhausted: str
) -> None:
    """The greedy continuations run into the stop string and into the token limit."""
    case = Case(
        (0.3, 0.5, 0.8),
        0.4,
        2,
        on_exhausted,
        num_candidates,
        max_tokens,
        segment_len=segment_len,
        lookahead=lookahead,
    )
    assert_same_law(case, closed_form)
    with pytest.raises(AssertionError):
        assert_same_law(case, lambda _: closed_form(replace(case, lookahead=0)))


def test_enumerator_rejects_a_wrong_law() -> None:
    """The comparison has teeth: another number of attempts is another law."""
    case = Case((0.4, 0.6), 0.5, 3, "best", 1, max_tokens=2)
    other = Case((0.4, 0.6), 0.5, 2, "best", 1, max_tokens=2)
    with pytest.raises(AssertionError):
        assert_same_law(case, lambda _: closed_form(other))


@cache
def _paths() -> int:
    model = TabularModel(PIECES, next_probs, end_id=END)
    runs = 0

    def run(noise: TreeNoise) -> int:
        nonlocal runs
        runs += 1
        rollout = make_rollout(noise=noise, sampling=SamplingParams(max_tokens=2, temperature=1.0))
        for _ in stars([rollout], model, TableReward({})):
            pass
        return len(rollout.token_ids)

    enumerate_law(run)
    return runs


@pytest.mark.slow
def test_enumerator_takes_every_path_once() -> None:
    # One segment of two tokens, the first may end the text: 2 * 3 + 1 drafts, 4 surplus ones
    # would multiply them, but only the first of four candidates is accepted.
    assert _paths() == 7**4

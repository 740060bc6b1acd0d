"""The law of the real loop, enumerated, against the closed form (DESIGN: the law of one segment).

Every path of the loop's randomness is run: token draws, acceptance draws, surplus candidates.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import pytest

from stars_engine import AlignParams, PerSegmentSchedule, SamplingParams
from stars_engine.core.offline import stars
from stars_engine.schedules import FunctionSchedule, Progress
from stars_engine.testing import TableReward, TabularModel, enumerate_law
from stars_engine.testing.enumerator import TreeNoise
from tests.conftest import make_rollout

# A vocabulary with an end of text and a stop string, which may cross a segment border.
PIECES = ("a", "b", "")
END = 2
STOP = "bb"

REWARDS = {
    "": 0.1,
    "a": 0.7,
    "b": -0.4,
    "aa": 1.1,
    "ab": 0.2,
    "ba": 0.2,  # a tie with "ab"
    "aab": 0.9,
    "aba": -0.3,
    "baa": 0.5,
    "aaa": 1.3,
}


def next_probs(completion: tuple[int, ...]) -> tuple[float, ...]:
    """A table that depends on the last token and on the length."""
    last = completion[-1] if completion else None
    first = (0.5, 0.375, 0.125) if last != 1 else (0.25, 0.5, 0.25)
    return first if len(completion) % 2 == 0 else (first[1], first[0], first[2])


@dataclass(frozen=True)
class Case:
    """One setting of the loop over the toy models."""

    thresholds: tuple[float, ...]
    beta: float
    max_attempts: int
    on_exhausted: str
    num_candidates: int
    max_tokens: int
    segment_len: int = 1
    rewards: tuple[tuple[str, float], ...] = tuple(REWARDS.items())
    vetoed: frozenset[str] = frozenset()
    min_segment_len: int | None = None  # None: segments do not end at sentences
    lookahead: int = 0
    pieces: tuple[str, ...] = PIECES
    stop: str = STOP
    slope: float = 0.0  # by how much thresholds rise with the reward of the prefix

    def schedule(self) -> PerSegmentSchedule | FunctionSchedule:
        """As the real loop gets it."""
        if self.slope == 0:
            return PerSegmentSchedule(values=self.thresholds)
        return FunctionSchedule(function=self.follow, uses_prompt_reward=True)

    def follow(self, progress: Progress) -> float:
        return self.thresholds[progress.segment_index] + self.slope * progress.prefix_reward


@cache
def enumerated(case: Case) -> dict[tuple[str, ...], float]:
    """Run the real loop on every path and collect (text, finish reason)."""
    model = TabularModel(case.pieces, next_probs, end_id=END)
    reward = TableReward(dict(case.rewards), default=0.0, vetoed=case.vetoed)
    align = AlignParams(
        schedule=case.schedule(),
        beta=case.beta,
        segment_len=case.segment_len,
        max_attempts=case.max_attempts,
        on_exhausted=case.on_exhausted,
        num_candidates=case.num_candidates,
        segment_end="length" if case.min_segment_len is None else "sentence",
        min_segment_len=case.min_segment_len,
        lookahead=case.lookahead,
    )
    sampling = SamplingParams(
        max_tokens=case.max_tokens, stop=(case.stop,), temperature=1.0, top_k=None
    )

    def run(noise: TreeNoise) -> tuple[str, ...]:
        rollout = make_rollout(align=align, sampling=sampling, noise=noise)
        for _ in stars([rollout], model, reward):
            pass
        result = rollout.result()
        return (result.text, result.finish_reason)

    return enumerate_law(run)


# --- the closed form, written from the formulas and not from the loop ---


def closed_form(case: Case) -> dict[tuple[str, ...], float]:
    """Chain the law of one segment over the segments."""
    law: dict[tuple[str, ...], float] = defaultdict(float)

    def extend(prefix: tuple[int, ...], weight: float, index: int) -> None:
        for segment, probability in segment_law(case, prefix, index).items():
            if segment is None:
                law[text_of(case, prefix), "rejected"] += weight * probability
                continue
            text, reason = read(case, prefix, segment)
            if reason is None:
                extend((*prefix, *segment), weight * probability, index + 1)
            else:
                law[text, reason] += weight * probability

    extend((), 1.0, 0)
    return law


def segment_law(case: Case, prefix: tuple[int, ...], index: int) -> dict[object, float]:
    """P(s) of one segment; None stands for ending before it."""
    rewards = dict(case.rewards)
    tau = case.thresholds[min(index, len(case.thresholds) - 1)]
    tau += case.slope * rewards.get(text_of(case, prefix), 0.0)
    proposal = drafts(case, prefix)
    r: dict[tuple[int, ...], float] = {}
    a: dict[tuple[int, ...], float] = {}
    for s in proposal:
        text = shown(case, prefix, s)
        r[s] = rewards.get(text, 0.0)
        eligible = math.isfinite(r[s]) and text not in case.vetoed
        if not eligible:
            r[s] = math.nan
        a[s] = acceptance(r[s], tau, case.beta) if eligible else 0.0
    m = case.max_attempts
    mean_a = sum(proposal[s] * a[s] for s in proposal)
    reject = 1 - mean_a
    accepted_once = m if mean_a == 0 else (1 - reject**m) / mean_a  # sum of reject^j, j < M
    law: dict[object, float] = {s: proposal[s] * a[s] * accepted_once for s in proposal}
    u = {s: proposal[s] * (1 - a[s]) for s in proposal}
    eligible_drafts = [s for s in proposal if not math.isnan(r[s])]
    veto = sum(u[s] for s in proposal if math.isnan(r[s]))
    if case.on_exhausted == "stop":
        law[None] = reject**m
    elif case.on_exhausted == "last":
        # The last eligible draw: after it only ineligible ones.
        for s in eligible_drafts:
            law[s] = law[s] + u[s] * sum(reject ** (m - 1 - k) * veto**k for k in range(m))
        law[None] = veto**m
    else:
        # Ineligible draws rank below all others.
        for s in eligible_drafts:
            below = veto + sum(u[t] for t in eligible_drafts if r[t] < r[s])
            tie = sum(u[t] for t in eligible_drafts if r[t] == r[s])
            if tie > 0:
                law[s] = law[s] + u[s] / tie * ((below + tie) ** m - below**m)
        law[None] = veto**m
    return law


def acceptance(reward: float, tau: float, beta: float) -> float:
    """a = min(1, exp((r - tau) / beta)), and its limit at beta = 0."""
    return float(reward >= tau) if beta == 0 else min(1.0, math.exp((reward - tau) / beta))


def drafts(case: Case, prefix: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """q(s): drafts of one segment, up to the end of text, a stop string or a sentence's end."""
    length = min(case.segment_len, case.max_tokens - len(prefix))
    q: dict[tuple[int, ...], float] = defaultdict(float)

    def grow(segment: tuple[int, ...], weight: float) -> None:
        if len(segment) == length or (segment and ends(case, prefix, segment)):
            q[segment] += weight
            return
        for token, probability in enumerate(next_probs((*prefix, *segment))):
            grow((*segment, token), weight * probability)

    grow((), 1.0)
    return q


def ends(case: Case, prefix: tuple[int, ...], segment: tuple[int, ...]) -> bool:
    whole = (*prefix, *segment)
    at_border = case.min_segment_len is not None and (
        len(segment) >= case.min_segment_len and case.pieces[segment[-1]] == "."
    )
    return at_border or segment[-1] == END or any(pair == (1, 1) for pair in pairwise(whole))


def read(case: Case, prefix: tuple[int, ...], segment: tuple[int, ...]) -> tuple[str, str | None]:
    text = text_of(case, (*prefix, *segment))
    if case.stop in text:
        return text[: text.index(case.stop)], "stop"
    if segment[-1] == END:
        return text, "stop"
    return text, "length" if len(prefix) + len(segment) == case.max_tokens else None


def shown(case: Case, prefix: tuple[int, ...], segment: tuple[int, ...]) -> str:
    """What the reward reads: the text with its greedy continuation, up to where the answer ends."""
    for _ in range(case.lookahead):
        if read(case, prefix, segment)[1] is not None:
            break
        probs = next_probs((*prefix, *segment))
        segment = (*segment, probs.index(max(probs)))
    return read(case, prefix, segment)[0]


def text_of(case: Case, ids: tuple[int, ...]) -> str:
    return "".join(case.pieces[token] for token in ids)


def assert_same_law(case: Case, form: Callable[[Case], dict[tuple[str, ...], float]]) -> None:
    got, expected = enumerated(case), form(case)
    assert sum(got.values()) == pytest.approx(1.0, abs=1e-12)
    for outcome in got.keys() | expected.keys():
        assert got.get(outcome, 0.0) == pytest.approx(expected.get(outcome, 0.0), abs=1e-12)


# --- cases ---

NAN = (*((k, v) for k, v in REWARDS.items() if k != "ba"), ("ba", math.nan), ("b", math.nan))


@pytest.mark.parametrize("on_exhausted", ["best", "last", "stop"])
@pytest.mark.parametrize("num_candidates", [1, 2, 4])
@pytest.mark.parametrize(
    ("thresholds", "beta", "max_attempts"),
    [
        ((0.4, 0.6), 0.5, 3),
        ((0.4, 0.6), 0.0, 3),
        ((-1.0, 0.2), 0.3, 2),
        ((5.0, 5.0), 0.0, 3),  # nothing is ever accepted: the forcing alone
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
@pytest.mark.parametrize("num_candidates", [2, 3, 4])
@pytest.mark.parametrize("with_nan", [False, True])
def test_attempts_that_take_several_rounds(
    num_candidates: int, on_exhausted: str, *, with_nan: bool
) -> None:
    """Five attempts in rounds of 2, 2, 1, or of 3, 2, or of 4, 1."""
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


@pytest.mark.parametrize("num_candidates", [1, 2])
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


# A vocabulary of sentences: a stop string begins with the end of one.
SENTENCES = {
    "rewards": tuple((text.replace("b", "."), reward) for text, reward in REWARDS.items()),
    "pieces": ("a", ".", ""),
    "stop": "..",
}


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
    with pytest.raises(AssertionError):  # a border makes another law
        assert_same_law(case, lambda _: closed_form(without))


@pytest.mark.slow
@pytest.mark.parametrize("on_exhausted", ["best", "last", "stop"])
@pytest.mark.parametrize("num_candidates", [1, 2, 4])
@pytest.mark.parametrize(
    ("lookahead", "segment_len", "max_tokens"), [(1, 1, 3), (2, 1, 3), (5, 1, 3), (1, 2, 3)]
)
def test_rewards_of_looked_ahead_texts(
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

"""The law of a small case in closed form, written from the formulas and not from the loop."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from stars_engine import AlignParams, CalibratedSchedule, PerSegmentSchedule, SamplingParams
from stars_engine.schedules import DrawLimit, FunctionSchedule, Line, Progress

# A vocabulary with an end of text and a stop string, which may cross segments.
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


def next_probs(completion: tuple[int, ...], prompt: int = 0) -> tuple[float, ...]:
    """A table that depends on the last token and on the length, and on which prompt it follows."""
    if prompt:
        return ((0.125, 0.75, 0.125), (0.25, 0.25, 0.5))[(len(completion) + prompt) % 2]
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
    # Share, prompt (0 is the plain one) and opening of each alternative.
    alternatives: tuple[tuple[float, int, tuple[int, ...]], ...] = ()
    # Limits on the draws of segments 0, 1, ... by the reward of the prefix; none if it is empty.
    draw_limits: tuple[DrawLimit | None, ...] = ()

    def align(self) -> AlignParams:
        """Return the settings of the case for the real loop."""
        return AlignParams(
            schedule=self.schedule(),
            beta=self.beta,
            segment_len=self.segment_len,
            max_attempts=self.max_attempts,
            on_exhausted=self.on_exhausted,
            num_candidates=self.num_candidates,
            segment_end="length" if self.min_segment_len is None else "sentence",
            min_segment_len=self.min_segment_len,
            lookahead=self.lookahead,
        )

    def sampling(self) -> SamplingParams:
        """Return the proposal of the case for the real loop."""
        return SamplingParams(
            max_tokens=self.max_tokens, stop=(self.stop,), temperature=1.0, top_k=None
        )

    def schedule(self) -> PerSegmentSchedule | FunctionSchedule | CalibratedSchedule:
        """As the real loop gets it."""
        if self.draw_limits:
            return CalibratedSchedule(
                stages=tuple(
                    Line(intercept=value, slope=self.slope, offset=0, sigma=1)
                    for value in self.thresholds
                ),
                draw_limits=self.draw_limits,
                segment_len=self.segment_len,
            )
        if self.slope == 0:
            return PerSegmentSchedule(values=self.thresholds)
        return FunctionSchedule(function=self.follow, uses_prompt_reward=True)

    def follow(self, progress: Progress) -> float:
        return self.thresholds[progress.segment_index] + self.slope * progress.prefix_reward


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
    prefix_reward = rewards.get(text_of(case, prefix), 0.0)
    tau += case.slope * prefix_reward
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
    m = min(case.max_attempts, limit_of(case, index, prefix_reward))
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


def limit_of(case: Case, index: int, prefix_reward: float) -> float:
    """The draws that the prefix's reward allows; inf if it sets no limit."""
    limit = case.draw_limits[min(index, len(case.draw_limits) - 1)] if case.draw_limits else None
    if limit is None:
        return math.inf
    low = -math.inf if limit.low is None else limit.low
    high = math.inf if limit.high is None else limit.high
    return limit.max_attempts if low <= prefix_reward <= high else math.inf


def acceptance(reward: float, tau: float, beta: float) -> float:
    """a = min(1, exp((r - tau) / beta)), and its limit at beta = 0."""
    return float(reward >= tau) if beta == 0 else min(1.0, math.exp((reward - tau) / beta))


def drafts(case: Case, prefix: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """q(s): the mixture of the plain prompt's drafts and those of the alternatives."""
    q: dict[tuple[int, ...], float] = defaultdict(float)
    rest = 1 - sum(share for share, _, _ in case.alternatives)
    for share, prompt, opening in ((rest, 0, ()), *case.alternatives):
        for segment, probability in drafts_after(case, prefix, prompt, opening).items():
            q[segment] += share * probability
    return q


def drafts_after(
    case: Case, prefix: tuple[int, ...], prompt: int, opening: tuple[int, ...]
) -> dict[tuple[int, ...], float]:
    """Drafts of one segment, up to the end of text, a stop string or a sentence's end.

    A token of the opening has probability 1 where the answer so far is a beginning of the opening.
    """
    length = min(case.segment_len, case.max_tokens - len(prefix))
    q: dict[tuple[int, ...], float] = defaultdict(float)

    def grow(segment: tuple[int, ...], weight: float) -> None:
        if len(segment) == length or (segment and ends(case, prefix, segment)):
            q[segment] += weight
            return
        whole = (*prefix, *segment)
        is_inside = len(whole) < len(opening) and opening[: len(whole)] == whole
        if is_inside:
            grow((*segment, opening[len(whole)]), weight)
            return
        for token, probability in enumerate(next_probs(whole, prompt)):
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


# A vocabulary of sentences: a stop string begins with the end of one.
SENTENCES = {
    "rewards": tuple((text.replace("b", "."), reward) for text, reward in REWARDS.items()),
    "pieces": ("a", ".", ""),
    "stop": "..",
}

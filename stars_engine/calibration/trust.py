"""Measure how well a reward judges unfinished text, on plainly sampled answers.

The pilot accepts everything, because accepted prefixes are range-restricted. The gain of STARS over
Best-of-N follows from the *innovation* of each segment: its reward minus the regression on the
reward before it. Best-of-N selects once, by the final reward; STARS selects in every segment, by
the innovation. With rho_k the correlation of the innovation of segment k with the outcome, the
ratio sum(rho_k) / rho_final is the expected advantage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from pydantic import Field

from stars_engine.calibration.draws import PooledDraws, draws_of
from stars_engine.calibration.fit import OFFSETS, baseline, regress
from stars_engine.calibration.over_prompts import (
    Floats,
    Indices,
    bootstrap,
    centred_within,
    of_each,
    rows_of,
)
from stars_engine.schedules import CurvePoint, Estimate
from stars_engine.schema import Schema

_NUM_RESAMPLES = 200
_MIN_ANSWERS = 16  # borders that fewer answers reach are not measured


class BorderTrust(Schema):
    """Correlation of the reward at one border with the outcome, among answers to one prompt."""

    num_tokens: float = Field(description="mean tokens read", examples=[32.0])
    num_answers: int = Field(description="answers that reach the border", examples=[192])
    spearman: float = Field(description="rank correlation with the outcome, -1 to 1")
    pearson: float = Field(description="correlation with the outcome, -1 to 1")


class SegmentTrust(Schema):
    """Expected gain over Best-of-N of judging segments of one length."""

    segment_len: int = Field(description="tokens judged together", examples=[8])
    mean_len: float = Field(description="mean tokens in a segment", examples=[8.0])
    innovations: tuple[float, ...] = Field(
        description="rho_k of segments 0, 1, ...: correlation of the innovation with the outcome"
    )
    advantage: Estimate = Field(description="sum of rho_k over rho_final, expected over Best-of-N")
    spearman_midway: float = Field(
        description="rank correlation with the outcome of the reward nearest to half of the answer"
    )


@dataclass(frozen=True, slots=True)
class Answers:
    """Plain answers with a reward at each border.

    Attributes:
        prompts: `(answers,)`, index of the prompt.
        rewards: One array per answer with its reward at each border; the last is the final reward.
        num_tokens: One array per answer with the number of tokens up to each border.
        outcomes: `(answers,)`, the final reward, or the judge's.
    """

    prompts: Indices
    rewards: Sequence[Floats]
    num_tokens: Sequence[Floats]
    outcomes: Floats

    def picked(self, prompts: Indices) -> Answers:
        """Return the answers to some prompts; a prompt picked twice counts as two."""
        rows, names = rows_of(self.prompts, prompts)
        return Answers(
            names,
            [self.rewards[row] for row in rows],
            [self.num_tokens[row] for row in rows],
            self.outcomes[rows],
        )

    def coarser(self, segment_len: int) -> Answers:
        """Return the answers with rewards only at every `segment_len` tokens and at the end."""
        kept = [
            np.flatnonzero((tokens % segment_len == 0) | (tokens == tokens[-1]))
            for tokens in self.num_tokens
        ]
        return Answers(
            self.prompts,
            [rewards[at] for rewards, at in zip(self.rewards, kept, strict=True)],
            [tokens[at] for tokens, at in zip(self.num_tokens, kept, strict=True)],
            self.outcomes,
        )


def borders(answers: Answers) -> list[BorderTrust]:
    """Return the correlation of reward and outcome at each border."""
    found = []
    for index, rows in _segments(answers):
        rewards = np.array([answers.rewards[row][index] for row in rows])
        prompts, outcomes = answers.prompts[rows], answers.outcomes[rows]
        found.append(
            BorderTrust(
                num_tokens=float(np.mean([answers.num_tokens[row][index] for row in rows])),
                num_answers=len(rows),
                spearman=within(_ranks_by, rewards, outcomes, prompts),
                pearson=within(centred_within, rewards, outcomes, prompts),
            )
        )
    return found


def segment_trust(answers: Answers, segment_len: int, *, seed: int = 0) -> SegmentTrust:
    """Return innovation correlations and the expected advantage, with an interval over prompts."""
    prompts = np.unique(answers.prompts)
    advantage = of_each(lambda picked: _advantage(answers.picked(prompts[picked])))
    lengths = np.concatenate([np.diff(tokens, prepend=0) for tokens in answers.num_tokens])
    return SegmentTrust(
        segment_len=segment_len,
        mean_len=float(lengths.mean()),
        innovations=tuple(value for value, _ in innovations(answers)),
        advantage=bootstrap(advantage, len(prompts), seed=seed, num_resamples=_NUM_RESAMPLES),
        spearman_midway=_midway(answers),
    )


def innovations(answers: Answers) -> list[tuple[float, float]]:
    """Return, for each segment, rho_k and the share of answers that have this segment."""
    found = []
    for index, rows in _segments(answers):
        prompts = answers.prompts[rows]
        new = centred_within(np.array([answers.rewards[row][index] for row in rows]), prompts)
        if index:
            old = centred_within(
                np.array([answers.rewards[row][index - 1] for row in rows]), prompts
            )
            variance = float(old @ old)
            new = new - old * (float(old @ new) / variance if variance > 0 else 0.0)
        outcome = centred_within(answers.outcomes[rows], prompts)
        found.append((correlation(new, outcome), len(rows) / len(answers.outcomes)))
    return found


def plain_curve(answers: Answers, *, max_attempts: int) -> tuple[CurvePoint, ...]:
    """Return the cost of offsets above the expected reward, from plainly sampled answers.

    The reward of each segment is regressed on the one before it, as in a calibration. Answers to
    the same prompt stand for drafts of one prefix. First segments, which continue a prompt, are
    left out. The curve is empty if too few answers have a second segment.
    """
    prompts = np.unique(answers.prompts)
    parts, weights = [], []
    for index, rows in _segments(answers, start=1):
        old = np.array([answers.rewards[row][index - 1] for row in rows])
        new = np.array([answers.rewards[row][index] for row in rows])
        residuals = new - baseline(*regress(old, new[:, None]), old)
        own = [residuals[answers.prompts[rows] == prompt] for prompt in prompts]
        table = np.full((len(prompts), max(map(len, own))), np.nan)
        for place, values in zip(table, own, strict=True):
            place[: len(values)] = values
        parts.append(table)
        weights.append(len(rows))
    if not parts:
        return ()
    spreads = [float(np.nanstd(part)) for part in parts]
    points = []
    for offset in OFFSETS:
        draws = [
            draws_of([part], offset * spread, 0.0)[0]
            for part, spread in zip(parts, spreads, strict=True)
        ]
        points.append(PooledDraws(draws, weights, stops=False).at(offset, max_attempts))
    return tuple(points)


def between_prompts(answers: Answers) -> float:
    """Return the share of the final reward's variance that lies between prompts, 0 to 1."""
    finals = np.array([rewards[-1] for rewards in answers.rewards])
    rest = centred_within(finals, answers.prompts)
    num_prompts = len(np.unique(answers.prompts))
    inside = float(rest @ rest) / max(1, len(finals) - num_prompts)
    total = float(finals.var(ddof=1))
    return min(1.0, max(0.0, 1 - inside / total)) if total > 0 else 0.0


def correlation(a: Floats, b: Floats) -> float:
    """Return Pearson's correlation; 0 if one of the arrays does not vary."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def within(
    centre: Callable[[Floats, Indices], Floats],
    a: Floats,
    b: Floats,
    prompts: Indices,
) -> float:
    """Return the correlation of two arrays among answers to the same prompt."""
    return correlation(centre(a, prompts), centre(b, prompts))


def _segments(answers: Answers, *, start: int = 0) -> Iterator[tuple[int, Indices]]:
    """Yield each segment that enough answers have, and which answers these are."""
    for index in count(start):
        rows = np.flatnonzero([len(rewards) > index for rewards in answers.rewards])
        if len(rows) < _MIN_ANSWERS:
            return
        yield index, rows


def _advantage(answers: Answers) -> float:
    finals = np.array([rewards[-1] for rewards in answers.rewards])
    final = within(centred_within, finals, answers.outcomes, answers.prompts)
    total = sum(value * share for value, share in innovations(answers))
    return total / final if final > 0 else float("nan")


def _midway(answers: Answers) -> float:
    """Return the rank correlation of the outcome with the reward nearest to half of each answer."""
    values = []
    for rewards, tokens in zip(answers.rewards, answers.num_tokens, strict=True):
        values.append(rewards[int(np.abs(tokens - tokens[-1] / 2).argmin())])
    return within(_ranks_by, np.array(values), answers.outcomes, answers.prompts)


def _ranks_by(values: Floats, prompts: Indices) -> Floats:
    """Return centred ranks among the answers to each prompt; ties share their mean rank."""
    ranks = np.empty(len(values))
    for prompt in np.unique(prompts):
        rows = np.flatnonzero(prompts == prompt)
        own = values[rows]
        below = (own[None, :] < own[:, None]).sum(1)
        same = (own[None, :] == own[:, None]).sum(1)
        rank = below + (same - 1) / 2
        ranks[rows] = (rank - rank.mean()) / max(1, len(rows) - 1)
    return ranks

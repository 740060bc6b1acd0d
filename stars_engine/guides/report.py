"""What is measured of a fitted head, and its model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from stars_engine.calibration.over_prompts import Floats, Indices, bootstrap, of_each, rows_of
from stars_engine.guides.statistics import line_of, within_correlation
from stars_engine.schedules import Estimate
from stars_engine.schema import Schema

if TYPE_CHECKING:  # these import torch
    from stars_engine.guides.samples import JudgedAnswer
    from stars_engine.guides.selection import Data

_NUM_RESAMPLES = 400
_MIN_ANSWERS = 32
_NUM_BINS = 8
_USEFUL = 0.2  # lower end of the correlation halfway, from which guiding pays

_CARD = """# Guide: {head}

Estimates what a judge ({judge}) will say of an answer of {model}, from the answer so far. It
guides STARS through `{reward}`, for this language model only.

```
{summary}
```

All figures are on prompts that the head was not fitted to. Prompts of another kind than those that
it was fitted to need a check of their own: `trust_report(engine, prompts, judge=...)`. The head
inherits the judge's mistakes.

| head tried | within-prompt correlation, mean over lengths |
|---|---|
{tried}
"""


class GuidePosition(Schema):
    """How well values after so many tokens tell answers to one prompt apart."""

    num_tokens: int = Field(description="tokens of the answer so far", examples=[16])
    num_answers: int = Field(description="answers that are longer", examples=[640])
    correlation: Estimate = Field(
        description="within-prompt correlation of the head's value with the judge's score of the "
        "whole answer, on prompts that it was not fitted to"
    )
    judge: Estimate | None = Field(
        default=None,
        description="the same of the judge's own score of the beginning; None if not measured",
    )


class GuideReport(Schema):
    """Figures of a fitted head, all on prompts that it was not fitted to."""

    num_prompts: int = Field(description="prompts")
    num_samples: int = Field(description="answers")
    head: str = Field(description="the head, in words")
    positions: tuple[GuidePosition, ...] = Field(description="figures by length of the beginning")
    tried: dict[str, float] = Field(
        description="within-prompt correlation of each head tried, mean over positions"
    )
    slope: float = Field(description="slope of scores on values; 1 is calibrated")
    bins: tuple[tuple[float, float], ...] = Field(
        description="mean value and mean score of an eighth of the rows each, lowest first"
    )
    seconds: dict[str, float] = Field(description="duration of each part")
    num_parameters: int = Field(description="numbers in the head")
    worthwhile: bool = Field(description="whether the head is expected to guide well")
    verdict: str = Field(description="advice as text")

    def summary(self) -> str:
        """Return the report as plain text."""
        lines = [
            f"{self.num_samples} answers to {self.num_prompts} prompts",
            f"guide: {self.head}, {self.num_parameters:,} numbers",
            "",
            "tokens read   within-prompt correlation   the judge itself     answers",
        ]
        for p in self.positions:
            own, judge = _interval(p.correlation), "-" if p.judge is None else _interval(p.judge)
            lines.append(f"{p.num_tokens:11d}   {own:25}   {judge:18} {p.num_answers:9d}")
        lines += ["", f"calibration: slope {self.slope:.2f} (1 is calibrated); value -> score:"]
        lines += ["  " + ", ".join(f"{v:.2f} -> {s:.2f}" for v, s in self.bins)]
        lines += ["", "seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in self.seconds.items())]
        return "\n".join([*lines, "", self.verdict])

    def card(self, *, model: str, judge: str, reward: str) -> str:
        """Return a model card in Markdown; `reward` is the config object that uses the guide."""
        tried = "\n".join(f"| {name} | {value:.3f} |" for name, value in self.tried.items())
        return _CARD.format(
            head=self.head,
            model=model,
            judge=judge,
            reward=reward,
            summary=self.summary(),
            tried=tried,
        )


def positions_of(
    data: Data, values: Floats, samples: Sequence[JudgedAnswer], *, seed: int
) -> list[GuidePosition]:
    """Measure values, and the judge's scores of beginnings, at each position."""
    scores = {index: sample.score for index, sample in enumerate(samples)}
    found = []
    for size in data.positions:
        at = np.flatnonzero(data.states.num_tokens == size)
        # At the end of an answer, values compare answers of different lengths.
        at = at[[len(samples[index].token_ids) > size for index in data.states.samples[at]]]
        if len(at) < _MIN_ANSWERS:
            continue
        judged = [i for i, sample in enumerate(samples) if size in sample.partial]
        judge = None
        if len(judged) >= _MIN_ANSWERS:
            judge = _estimate(
                np.array([samples[i].partial[size] for i in judged]),
                np.array([scores[i] for i in judged], dtype=float),
                np.array([samples[i].prompt_index for i in judged]),
                seed,
            )
        own = _estimate(values[at], data.scores[at], data.prompts[at], seed)
        found.append(
            GuidePosition(num_tokens=size, num_answers=len(at), correlation=own, judge=judge)
        )
    return found


def calibration_of(values: Floats, scores: Floats) -> tuple[float, tuple[tuple[float, float], ...]]:
    """Return the slope of scores on values, and means in bins of equal size."""
    slope, _ = line_of(values, scores)
    order = np.argsort(values)
    bins = [part for part in np.array_split(order, _NUM_BINS) if len(part)]
    return slope, tuple((float(values[b].mean()), float(scores[b].mean())) for b in bins)


def verdict_of(positions: Sequence[GuidePosition], *, reward: str) -> tuple[bool, str]:
    """Return whether to use the guide, and why; `reward` is the config object that uses it."""
    if not positions:
        return False, "Too few long answers to measure anything. Sample more, or longer ones."
    middle = positions[len(positions) // 2]
    own = middle.correlation
    said = f"After {middle.num_tokens} tokens the within-prompt correlation is {_interval(own)}"
    if own.low < _USEFUL:
        return False, (
            f"{said}, too little to rely on: prefer Best-of-N, or sample more answers, or use a "
            "judge whose scores of answers to one prompt differ more."
        )
    share = ""
    if middle.judge is not None and middle.judge.value > 0:
        share = f", {100 * own.value / middle.judge.value:.0f} % of what the judge itself knows"
    return True, f"{said}{share}: use it with {reward} and calibrated thresholds."


def _estimate(values: Floats, scores: Floats, prompts: Indices, seed: int) -> Estimate:
    """Return the within-prompt correlation with an interval over prompts."""
    distinct = np.unique(prompts)

    def correlation(picked: Indices) -> float:
        rows, names = rows_of(prompts, distinct[picked])
        return within_correlation(values[rows], scores[rows], names)

    figure = of_each(correlation)
    return bootstrap(figure, len(distinct), seed=seed, num_resamples=_NUM_RESAMPLES)


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"

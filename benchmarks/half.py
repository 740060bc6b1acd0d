"""A set of prompts: its plain answers, and comparisons of any arm with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.answers import AnswerRecord, Arms, perplexity
from stars_engine import AlignParams, LinearSchedule, SamplingParams
from stars_engine.calibration.over_prompts import Floats
from stars_engine.evaluation.statistics import (
    at_equal_tokens,
    best_of,
    over_prompts,
    win_rate,
)
from stars_engine.evaluation.text_measures import distinct
from training.linear import LinearClassifier

COMPARED = (4, 8, 16)
# Limits relative to plain sampling: an arm beyond them games its guide, or changes its style.
GUARDS = {"perplexity": (0.8, 1.2), "distinct-2": (0.9, 1.1), "tokens": (0.9, 1.1)}


class Half:
    """One half of the prompts: its plain answers, and comparisons of any arm with them.

    Args:
        prompts: Openings.
        arms: Generates answers.
        judge: Reads opening and answer as one text.
        seeds: Every arm answers once under each.
        samples: Minimum number of plain answers to each prompt.
        language_model: Model for perplexity.
        max_tokens: Maximum tokens of an answer.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        arms: Arms,
        judge: LinearClassifier,
        *,
        seeds: Sequence[int],
        samples: int,
        language_model: Path,
        max_tokens: int,
    ) -> None:
        self.prompts, self.arms, self.seeds = prompts, arms, seeds
        self._judge, self._language_model = judge, language_model
        self.sampling = SamplingParams(max_tokens=max_tokens)
        each = math.ceil(samples / len(seeds))
        self.plain = [
            answer
            for seed in seeds
            for answer in arms.vanilla(prompts, self.sampling.replace(seed=seed, n=each))
        ]
        self.guide = self.table(self.plain, [answer.reward for answer in self.plain])
        self.opinion = self.judged(self.plain)
        numbers = range(1, self.guide.shape[1] + 1)
        self.curve = np.stack([best_of(n, self.guide, self.opinion) for n in numbers], axis=1)
        self.num_plain = self.guide.shape[1]
        # Tokens of one plain answer: the unit of all costs.
        self._length = self.table(self.plain, [len(answer.ids) for answer in self.plain]).mean(1)

    def table(self, answers: Sequence[AnswerRecord], values: Sequence[float] | Floats) -> Floats:
        """Return values as `(prompts, answers to each)`."""
        rows: list[list[float]] = [[] for _ in self.prompts]
        for answer, value in zip(answers, values, strict=True):
            rows[answer.prompt].append(float(value))
        return np.array(rows)

    def judged(self, answers: Sequence[AnswerRecord]) -> Floats:
        """Return the judge's log-odds, `(prompts, answers to each)`."""
        texts = [self.prompts[answer.prompt] + answer.text for answer in answers]
        return self.table(answers, self._judge.logits(texts))

    def stars(self, align: AlignParams, num_seeds: int | None = None) -> list[AnswerRecord]:
        """Return an arm's answers under the first seeds, all of them if not given."""
        return [
            answer
            for seed in self.seeds[:num_seeds]
            for answer in self.arms.stars(self.prompts, self.sampling.replace(seed=seed), align)
        ]

    def aligned(self, answers: Sequence[AnswerRecord]) -> dict[str, Any]:
        """Return all figures of an arm."""
        opinion = self.judged(answers)
        spent = self.table(answers, [answer.num_drafted for answer in answers]).mean(1)
        mean_opinion = opinion.mean(1)
        wins = win_rate(opinion, self.opinion)

        def times(picked: NDArray[np.int64]) -> Floats:
            return np.asarray(spent[picked].mean(-1) / self._length[picked].mean(-1))

        def over_equal(picked: NDArray[np.int64]) -> Floats:
            equal = at_equal_tokens(self.curve[picked].mean(-2), times(picked))
            return np.asarray(mean_opinion[picked].mean(-1) - equal)

        return {
            "times": self._interval(times),
            "guide": float(np.mean([answer.reward for answer in answers])),
            "judge": self._mean(mean_opinion),
            "positive": float((opinion > 0).mean()),
            "wins": self._mean(wins),
            "over_equal_tokens": self._interval(over_equal),
            **self._over_best_of(mean_opinion),
            "forced": sum(answer.num_forced for answer in answers)
            / sum(answer.num_segments for answer in answers),
            **self._guards(answers),
        }

    def ramp(self, n: int) -> LinearSchedule:
        """Return thresholds that rise to the mean guide reward of Best-of-n."""
        target = float(best_of(min(n, self.num_plain), self.guide, self.guide).mean())
        return LinearSchedule(target=round(target, 2), initial_weight=0.5)

    def plain_figures(self) -> dict[str, Any]:
        """Return the figures of plain sampling; guards use one answer to each prompt and seed."""
        first = self.plain[:: len(self.plain) // (len(self.prompts) * len(self.seeds))]
        return {
            **self._selected(1),
            "wins": None,
            "over_equal_tokens": None,
            **self._guards(first),
        }

    def best_of_figures(self, n: int) -> dict[str, Any]:
        """Return the figures of Best-of-n; guards use the best of each prompt's first n answers."""
        kept: list[list[AnswerRecord]] = [[] for _ in self.prompts]
        for answer in self.plain:
            kept[answer.prompt].append(answer)
        best = [max(answers[:n], key=lambda answer: answer.reward) for answers in kept]
        wins = np.stack(
            [
                win_rate(self.opinion[:, [column]], np.delete(self.opinion, column, 1))
                for column in range(self.opinion.shape[1])
            ],
            axis=1,
        )
        by_prompt = best_of(n, self.guide, wins)
        return {
            **self._selected(n),
            "wins": self._mean(by_prompt),
            "over_equal_tokens": None,
            **self._guards(best),
        }

    def _selected(self, n: int) -> dict[str, Any]:
        values = self.curve[:, n - 1]
        positive = best_of(n, self.guide, (self.opinion > 0).astype(float))
        return {
            "times": [float(n)] * 3,
            "guide": float(best_of(n, self.guide, self.guide).mean()),
            "judge": self._mean(values),
            "positive": float(positive.mean()),
            **self._over_best_of(values),
            "forced": None,
        }

    def _over_best_of(self, opinion: Floats) -> dict[str, list[float]]:
        return {
            f"over_best_of_{n}": self._mean(opinion - self.curve[:, n - 1])
            for n in COMPARED
            if n <= self.num_plain
        }

    def _interval(self, figure: Callable[[NDArray[np.int64]], Floats]) -> list[float]:
        """Return a figure and the ends of its 95% interval over prompts."""
        found = over_prompts(figure, len(self.prompts))
        return [found.value, found.low, found.high]

    def _mean(self, values: Floats) -> list[float]:
        return self._interval(lambda picked: values[picked].mean(-1))

    def _guards(self, answers: Sequence[AnswerRecord]) -> dict[str, float]:
        """Return the figures that an arm spoils if it games its guide.

        `distinct-2` is computed within answers; over all answers it falls with their number.
        """
        texts = [answer.text for answer in answers]
        one_each = list({answer.prompt: answer.text for answer in answers}.values())
        return {
            "perplexity": perplexity(self._language_model, self.prompts, answers),
            "distinct-2": float(np.nanmean([distinct([text], 2) for text in texts])),
            "distinct-2 over prompts": distinct(one_each, 2),
            "tokens": float(np.mean([len(answer.ids) for answer in answers])),
        }


def guards_hold(figures: dict[str, Any], plain: dict[str, Any]) -> bool:
    """Return whether perplexity, distinct-2 and length are within shares of plain sampling's."""
    return all(
        low * plain[name] <= figures[name] <= high * plain[name]
        for name, (low, high) in GUARDS.items()
    )

"""The answers of arms as arrays over prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from stars_engine.calibration.over_prompts import Floats
from stars_engine.evaluation.arms import BestOfNArm
from stars_engine.evaluation.recipe import Recipe
from stars_engine.evaluation.runner import ArmAnswers
from stars_engine.types import Attempt, StarsResult

Pair = tuple[str, str]
Score = Callable[[str, Sequence[Pair]], list[float]]  # judge, (prompt, answer) -> rewards
Nats = Callable[[Sequence[Pair]], list[tuple[float, int]]]

_DIGITS = 4
GUIDE = "guide"  # the name of the recipe's guide as a judge


class Measures(NamedTuple):
    """What measures answers.

    Attributes:
        score: Scores answers with a judge of the recipe, or with its guide (`GUIDE`).
        nats: Returns likelihoods under the recipe's language model; None if it is not measured.
    """

    score: Score
    nats: Nats | None


class Pool(NamedTuple):
    """Samples of the largest Best-of-N arm, for Best-of-N in expectation.

    Attributes:
        name: The arm.
        n: Its number of samples for one answer. There are more if it gave several answers.
        guide: Guide rewards, `(prompts, samples)`.
        judges: Judges' rewards, likewise.
        tokens: Tokens of each sample, likewise.
    """

    name: str
    n: int
    guide: Floats
    judges: dict[str, Floats]
    tokens: Floats


class ArmTable:
    """The answers of one arm as arrays `(prompts, answers)`; seeds and samples are columns.

    Args:
        answers: What the arm answered.
        num_prompts: Prompts of the half.
        score: See `Measures`.
    """

    def __init__(self, answers: ArmAnswers, num_prompts: int, score: Score) -> None:
        self.arm, self.align = answers.arm, answers.align
        self.records = answers.records
        self._score = score
        self.results: list[list[StarsResult]] = [[] for _ in range(num_prompts)]
        self.prompts = [""] * num_prompts
        for record in answers.records:
            self.results[record.prompt_index] += record.results
            self.prompts[record.prompt_index] = record.prompt

    def array(self, value: Callable[[StarsResult], float | None]) -> Floats:
        """Return a value of every answer; None is nan."""
        rows = [[value(result) for result in own] for own in self.results]
        return np.array(rows, dtype=float)

    @property
    def pairs(self) -> list[Pair]:
        """(prompt, answer) of every answer, prompts outermost."""
        return [
            (prompt, result.text)
            for prompt, own in zip(self.prompts, self.results, strict=True)
            for result in own
        ]

    def opinions(self, judge: str) -> Floats:
        """Return a judge's rewards."""
        values = np.array(self._score(judge, self.pairs), dtype=float)
        return values.reshape(len(self.prompts), -1)

    @cached_property
    def guide(self) -> Floats:
        """Rewards of the recipe's guide.

        They are rounded, so that equal texts tie: a model that read a text in one piece and one
        that read it in segments differ in the last digits.
        """
        arm = self.arm
        if arm.has_recipe_models:
            own = self.array(lambda result: result.reward)
            if not np.isnan(own).any():
                return np.round(own, _DIGITS)
        return np.round(self.opinions(GUIDE), _DIGITS)

    @cached_property
    def drafted(self) -> Floats:
        """Drafted tokens of every answer."""
        return self.array(lambda result: result.usage.num_drafted_tokens)

    @cached_property
    def kept(self) -> Floats:
        """Kept tokens of every answer."""
        return self.array(lambda result: result.usage.num_kept_tokens)

    @property
    def flat(self) -> list[StarsResult]:
        """Every answer."""
        return [result for own in self.results for result in own]


def pool_of(
    recipe: Recipe, tables: Mapping[str, ArmTable], judges: Sequence[str], score: Score
) -> Pool | None:
    """Return the samples of the largest Best-of-N arm with the recipe's models, if there is one."""
    sizes = {
        name: arm.n
        for name, arm in recipe.base_arms.items()
        if name in tables and isinstance(arm, BestOfNArm)
    }
    if not sizes:
        return None
    name = max(sizes, key=lambda item: sizes[item])
    table = tables[name]
    attempts = [
        [attempt for result in own for attempt in _samples_of(result)] for own in table.results
    ]
    guide = np.array([[a.reward for a in row] for row in attempts], dtype=float)
    pairs = [
        (prompt, attempt.text or "")
        for prompt, row in zip(table.prompts, attempts, strict=True)
        for attempt in row
    ]
    return Pool(
        name,
        sizes[name],
        guide,
        {
            judge: guide
            if judge == GUIDE
            else np.array(score(judge, pairs), dtype=float).reshape(guide.shape)
            for judge in judges
        },
        np.array([[a.num_tokens for a in row] for row in attempts], dtype=float),
    )


def _samples_of(result: StarsResult) -> Sequence[Attempt]:
    """Return the whole answers from which Best-of-N chose."""
    return result.segments[0].attempts if result.segments else result.abandoned_attempts

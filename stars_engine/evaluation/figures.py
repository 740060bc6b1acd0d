"""The figures of an evaluation, as data: what the report shows and report.json holds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from stars_engine.calibration.report import TrustReport
from stars_engine.evaluation.recipe import Recipe
from stars_engine.evaluation.store import HalfName
from stars_engine.schedules import Estimate
from stars_engine.schema import Schema


class JudgeFigures(Schema):
    """An arm as one judge sees it. Differences are paired by prompt."""

    reward: Estimate = Field(description="mean reward of the judge")
    wins: Estimate | None = Field(
        description="win rate against the reference arm, ties half; None for the reference itself"
    )
    wins_at_equal_length: float | None = Field(
        description="the win rate that a logistic regression finds at equal length"
    )
    over_equal_tokens: Estimate | None = Field(
        description="minus Best-of-N of as many drafted tokens, in expectation; None without a "
        "Best-of-N arm"
    )
    over_best_of: Estimate | None = Field(description="minus the largest Best-of-N arm's")
    as_good_as_best_of: float | None = Field(
        description="the N at which Best-of-N has the same mean reward; inf if none has"
    )


class Costs(Schema):
    """What an arm costs, calibration excluded."""

    times: Estimate = Field(description="drafted tokens over those of a plain answer")
    generated_times: float = Field(description="all generated tokens, surplus included, likewise")
    drafted_tokens: float = Field(description="drafted tokens per answer")
    discarded: float = Field(description="share of generated tokens that were not kept")
    reward_tokens: float = Field(description="tokens that the guide read per answer")
    reward_calls: float = Field(description="rewards per answer")
    wall_s: float = Field(description="wall time per answer at the recipe's batch size, seconds")
    cpu_s: float = Field(description="processor time per answer, seconds")


class TextFigures(Schema):
    """Measures of texts that no reward model makes."""

    perplexity: float | None = Field(description="under the recipe's language model")
    distinct_1: float = Field(description="distinct words over all answers")
    distinct_2: float = Field(description="distinct word pairs over one answer per prompt")
    distinct_2_within: float = Field(description="distinct word pairs within answers, mean")
    self_bleu: float = Field(description="likeness of answers to different prompts, 0 to 1")
    repetition: float = Field(description="share of 4-grams that repeat an earlier one, mean")
    tokens: float = Field(description="tokens per answer")
    ended: float = Field(description="share of answers that the model or a stop string ended")


class SegmentFigures(Schema):
    """How segments were accepted."""

    num_segments: int = Field(description="judged segments")
    attempts_mean: float = Field(description="draws per segment")
    attempts_p50: float = Field(description="median of draws per segment")
    attempts_p95: float = Field(description="95th percentile")
    attempts_max: int = Field(description="maximum")
    histogram: tuple[int, ...] = Field(description="segments with 1, 2, ... draws")
    forced: float = Field(description="share of segments kept without acceptance")
    acceptance: tuple[float, ...] = Field(description="acceptance of draws by segment index")
    repeated: float = Field(description="share of draws that repeat an earlier one")


class LatencyFigures(Schema):
    """Seconds of a request, at the recipe's batch size."""

    p50: float = Field(description="median")
    p95: float = Field(description="95th percentile")
    first_p50: float = Field(description="median of the time to the first segment")
    first_p95: float = Field(description="95th percentile of it")


class DifficultyBin(Schema):
    """Prompts of similar difficulty: the mean guide reward of their plain answers."""

    plain_reward: float = Field(description="mean guide reward of plain answers")
    num_prompts: int = Field(description="prompts in the bin")
    attempts: float = Field(description="draws per segment")
    forced: float = Field(description="share of forced segments")
    times: float = Field(description="drafted tokens over those of a plain answer")
    seconds_p50: float = Field(description="median seconds of a request")
    seconds_p95: float = Field(description="95th percentile of them")
    judge: float = Field(description="mean reward of the first judge")


class ArmFigures(Schema):
    """Everything measured of one arm on one half of the prompts."""

    name: str
    kind: str
    settings: dict[str, Any] = Field(description="the arm, and its thresholds")
    num_answers: int
    guide: Estimate = Field(description="mean reward of the recipe's guide")
    judges: dict[str, JudgeFigures]
    costs: Costs
    texts: TextFigures
    segments: SegmentFigures | None
    latency: LatencyFigures
    difficulty: tuple[DifficultyBin, ...] = ()
    guards: dict[str, bool] = Field(
        default={}, description="whether each measure is within the recipe's limits"
    )

    @property
    def guards_hold(self) -> bool:
        """Whether all measures are within the limits."""
        return all(self.guards.values())


class Curve(Schema):
    """Best-of-N in expectation over all subsets of the largest Best-of-N arm's samples."""

    arm: str = Field(description="the arm whose samples are used")
    guide: tuple[float, ...] = Field(description="mean guide reward of Best-of-1, 2, ...")
    judges: dict[str, tuple[float, ...]] = Field(description="mean judge rewards, likewise")


class HalfFigures(Schema):
    """The arms on one half of the prompts."""

    half: HalfName
    num_prompts: int
    arms: dict[str, ArmFigures]
    curve: Curve | None
    rankings: dict[str, dict[str, float]] = Field(
        description="by judge: Bradley-Terry strengths of arms on Elo's scale, best first"
    )


class ShownSegment(Schema):
    """One segment of a shown answer."""

    text: str
    reward: float | None
    threshold: float | None
    verdict: str
    rejected: tuple[tuple[float, str], ...] = Field(description="rejected drafts: reward, text")


class ShownAnswer(Schema):
    """One shown answer."""

    prompt: str
    arm: str
    reward: float | None
    judges: dict[str, float]
    segments: tuple[ShownSegment, ...]


class Evaluation(Schema):
    """The result of an evaluation."""

    recipe: Recipe
    versions: dict[str, str] = Field(description="versions of Python and packages")
    fresh: HalfFigures
    tuning: HalfFigures | None = None
    chosen: dict[str, str] = Field(default={}, description="the chosen arm of each family")
    trust: TrustReport | None = None
    samples: tuple[ShownAnswer, ...] = ()
    schema_version: Literal[1] = 1

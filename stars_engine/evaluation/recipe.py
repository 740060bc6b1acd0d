"""Recipes: everything that an evaluation needs, as one config object and YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.config import (
    CompositeReward,
    FunctionReward,
    RewardConfig,
    SamplingParams,
    StarsConfig,
    ValueReward,
)
from stars_engine.config.rewards import as_reward
from stars_engine.errors import ConfigError, Problem
from stars_engine.evaluation.arms import AnyArm, Arm, BestOfNArm, PlainArm
from stars_engine.evaluation.prompts import PromptSet
from stars_engine.files.config_files import Filed
from stars_engine.schema import Schema

Bounds = tuple[float, float]
_FOLDER = resources.files("stars_engine") / "evaluation" / "recipes"


class Guards(Schema):
    """Limits that show an arm that games its guide, or changes the style of its texts."""

    perplexity: Bounds = Field(
        default=(0.8, 1.2), description="lowest and highest share of the reference arm's perplexity"
    )
    distinct_2: Bounds = Field(
        default=(0.9, 1.1), description="the same for distinct word pairs within answers"
    )
    tokens: Bounds = Field(default=(0.9, 1.1), description="the same for the length of answers")
    forced: float = Field(default=0.1, ge=0, le=1, description="maximum share of forced segments")


class TrustSettings(Schema):
    """How much the reward of unfinished text is to be trusted: measured on plain answers."""

    num_prompts: int = Field(default=24, ge=4, description="fresh prompts, the first ones")
    num_answers: int = Field(default=8, ge=4, description="plain answers per prompt")


class Recipe(Filed):
    """An evaluation: arms, prompts, judges and seeds."""

    name: str = Field(min_length=1, description="a short name", examples=["quick"])
    title: str = Field(default="", description="the question that the evaluation answers")
    config: StarsConfig = Field(
        default_factory=StarsConfig,
        description="language model, guide and engine; default: the embedded pair",
    )
    prompts: PromptSet = Field(default_factory=PromptSet, description="where prompts come from")
    sampling: SamplingParams = Field(
        default_factory=SamplingParams,
        description="the proposal of every arm; `n` answers per prompt and seed",
    )
    seeds: tuple[int, ...] = Field(
        default=(11,), min_length=1, description="every arm answers once under each seed"
    )
    judges: dict[str, RewardConfig] = Field(
        default_factory=dict,
        description="rewards that never guide, by name; the first one chooses arms. Without any, "
        "the guide's own reward is reported alone",
    )
    arms: dict[str, Arm] = Field(min_length=1, description="what is compared, by name")
    reference: str = Field(
        default="vanilla", description="the arm that win rates and guards are relative to"
    )
    choose: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="for each family of arms, the candidates: the one with the highest judge "
        "reward on the tuning prompts is reported on the fresh ones",
        examples=[{"STARS": ["budget 2.7", "budget 4"]}],
    )
    max_times: float = Field(
        default=6.0,
        gt=0,
        description="maximum cost of a chosen arm: drafted tokens over those of a plain answer",
    )
    guards: Guards = Field(default_factory=Guards, description="limits for every arm")
    trust: TrustSettings | None = Field(
        default=None, description="also measure trust in rewards of unfinished text"
    )
    perplexity: bool = Field(
        default=True, description="measure perplexity under the recipe's language model"
    )
    batch_size: int = Field(
        default=32,
        ge=1,
        description="prompts that the engine answers together; 1 measures the latency of a single "
        "request",
    )
    num_samples: int = Field(default=4, ge=0, description="prompts whose answers are shown")
    schema_version: Literal[1] = Field(default=1, description="version of this file's layout")

    def unwritable(self) -> Iterator[Problem]:
        """Return a problem for each value that cannot be written to a file."""
        for problem in self.config.unwritable():
            yield problem.under("config")
        parts: dict[str, Any] = {f"judges.{name}": judge for name, judge in self.judges.items()}
        for name, arm in self.arms.items():
            parts |= {f"arms.{name}.model": arm.model, f"arms.{name}.reward": arm.reward}
        for name, part in parts.items():
            if part is not None:
                for problem in part.unwritable():
                    yield problem.under(name)

    @field_validator("judges", mode="before")
    @classmethod
    def _judges_by_name(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: _as_judge(judge) for name, judge in value.items()}

    @model_validator(mode="after")
    def _arms_exist(self) -> Self:
        reference = self.arms.get(self.reference)
        if reference is None:
            raise ValueError(
                f"reference {self.reference!r} is not an arm; arms: {', '.join(self.arms)}. Hint: "
                "name one of them"
            )
        if reference.kind == "best_of_n":
            raise ValueError(
                f"reference {self.reference!r} generates several answers each. Hint: name an arm "
                "of one answer each, such as vanilla"
            )
        for family, names in self.choose.items():
            unknown = [name for name in names if name not in self.arms]
            if unknown:
                raise ValueError(
                    f"choose.{family} names unknown arms: {', '.join(unknown)}; arms: "
                    f"{', '.join(self.arms)}. Hint: name some of them"
                )
            if self.reference in names:
                raise ValueError(
                    f"choose.{family} names the reference arm, which is always run. "
                    "Hint: remove it there"
                )
        if self.choose and not self.prompts.tuning:
            raise ValueError("choose needs tuning prompts. Hint: prompts.tuning")
        return self

    @model_validator(mode="after")
    def _guide_scores_all_arms(self) -> Self:
        others = {name for name, arm in self.arms.items() if not arm.has_recipe_models}
        if others and _reads_drafts(self.config.reward):
            raise ValueError(
                "config.reward has a value head, which scores only what its own language model "
                f"drafts, and arms with other models or rewards are scored by it, too: "
                f"{', '.join(sorted(others))}. Hint: set config.reward to a reward that reads "
                "text, and give arms that the value head guides a reward of their own"
            )
        return self

    @property
    def candidates(self) -> set[str]:
        """Arms that run on the tuning prompts to be chosen."""
        return {name for names in self.choose.values() for name in names}

    @property
    def base_arms(self) -> dict[str, AnyArm]:
        """Arms with the recipe's own models and proposals."""
        return {
            name: arm
            for name, arm in self.arms.items()
            if arm.has_recipe_models
            and not (isinstance(arm, PlainArm) and arm.alternatives is not None)
        }

    @property
    def largest_best_of(self) -> str | None:
        """The arm from whose samples Best-of-N is computed for every N; None if there is none."""
        sizes = {n: arm.n for n, arm in self.base_arms.items() if isinstance(arm, BestOfNArm)}
        return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _as_judge(value: Any) -> Any:
    """Return a judge's config; a callable, or its name, takes lists of prompts and answers."""
    found = as_reward(value)
    if found is not value and isinstance(found, FunctionReward):
        return found.replace(batched=True)
    return found


def recipe_names() -> list[str]:
    """Return the names of the recipes of the package."""
    return sorted(
        path.name.removesuffix(".yaml") for path in _FOLDER.iterdir() if path.name.endswith(".yaml")
    )


def read_recipe(name: str | Path, *, allow_imports: bool = True) -> Recipe:
    """Read a recipe of the package by its name, or a file.

    Raises:
        ConfigError: There is no such recipe, or it is invalid.
    """
    if isinstance(name, str) and name in recipe_names():
        with resources.as_file(_FOLDER / f"{name}.yaml") as path:
            return Recipe.from_file(path)
    if Path(name).suffix in (".yaml", ".yml", ".json"):
        return Recipe.from_file(name, allow_imports=allow_imports)
    message = f"unknown recipe {str(name)!r}; expected a .yaml file or one of " + ", ".join(
        recipe_names()
    )
    raise ConfigError("Recipe", [Problem("name", message)])


def _reads_drafts(reward: RewardConfig) -> bool:
    """Whether a reward reads the hidden states of drafts, so that it cannot score other texts."""
    if isinstance(reward, CompositeReward):
        return any(_reads_drafts(part.reward) for part in reward.parts.values())
    return isinstance(reward, ValueReward)

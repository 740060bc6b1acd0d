"""Recipes: those of the package, their files, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from stars_engine import AlignParams, ConfigError, NoSchedule
from stars_engine.cli.compare import sweep_arms
from stars_engine.evaluation import (
    BestOfNArm,
    Recipe,
    StarsArm,
    VanillaArm,
    read_recipe,
    recipe_names,
)
from stars_engine.evaluation.arms import tilted
from stars_engine.schedules import CalibratedSchedule


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_survive_a_file(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.title.endswith("?")
    recipe.to_file(tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe


def test_all_experiments_are_there() -> None:
    assert set(recipe_names()) == {
        "quick",
        "best-of-n",
        "segment-length",
        "schedules",
        "prefix-noise",
        "sensitivity",
        "partial-text",
        "latency",
        "adversarial",
        "checkpoints",
        "guides",
        "harmlessness",
    }


def test_an_unknown_recipe_names_the_others() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'quik'.*quick"):
        read_recipe("quik")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arms": {"a": {"kind": "vanilla"}}}, "reference 'vanilla' is not an arm; arms: a"),
        ({"reference": "best"}, "reference 'best' generates several answers each.*Hint"),
        ({"choose": {"STARS": ("none",)}}, "choose.STARS names unknown arms: none"),
        ({"choose": {"STARS": ("vanilla",)}}, "names the reference arm"),
        (
            {
                "config": {
                    "model": "my/model",
                    "reward": {"kind": "value", "name_or_path": "guides/reviews"},
                },
                "arms": {
                    "vanilla": {"kind": "vanilla"},
                    "other": {"kind": "best_of_n", "n": 2, "reward": "a/b"},
                },
            },
            "a value head, which scores only what .* too: other.*Hint",
        ),
        ({"arms": {"vanilla": {"kind": "best"}}}, "unknown kind 'best'|allowed kinds"),
    ],
)
def test_wrong_recipes_are_explained(values: dict[str, object], message: str) -> None:
    arms = {"vanilla": VanillaArm(), "best": BestOfNArm(n=2)}
    with pytest.raises(ConfigError, match=message):
        Recipe(**{"name": "x", "arms": arms, **values})


def test_a_target_needs_a_threshold_to_replace() -> None:
    with pytest.raises(ConfigError, match=r"target needs a linear or constant schedule.*Hint"):
        StarsArm(target={"best_of": 4})
    with pytest.raises(ConfigError, match=r"tilt needs calibrated thresholds.*Hint"):
        StarsArm(align=AlignParams(schedule=NoSchedule()), tilt=1)


def test_a_tilt_moves_effort_along_the_answer() -> None:
    line = {"intercept": 0.0, "slope": 1.0, "offset": 0.1, "sigma": 2.0}
    schedule = CalibratedSchedule(stages=(line,) * 5, segment_len=8)
    offsets = [stage.offset for stage in tilted(schedule, 1.0).stages]
    assert offsets == pytest.approx([-0.9, -0.4, 0.1, 0.6, 1.1])
    assert tilted(schedule, 0.0).stages == schedule.stages


def test_a_sweep_has_an_arm_for_every_combination() -> None:
    arms = sweep_arms(["segment_len=8,16", "schedule.budget=2.7,4"])
    assert list(arms) == [
        "segment_len 8, budget 2.7",
        "segment_len 8, budget 4",
        "segment_len 16, budget 2.7",
        "segment_len 16, budget 4",
    ]
    last = arms["segment_len 16, budget 4"].align
    assert (last.segment_len, last.schedule.budget) == (16, 4)
    with pytest.raises(ConfigError, match="FIELD=VALUE,VALUE"):
        sweep_arms(["segment_len"])
    with pytest.raises(ConfigError, match="segment_length: unknown field"):
        sweep_arms(["segment_length=8"])

"""Arms with other proposals: system messages, prefaces and openings."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from stars_engine import AlignParams, Alternative, ConfigError, SamplingParams, StarsConfig
from stars_engine.evaluation import (
    BestOfNArm,
    BlockwiseArm,
    PromptSet,
    Recipe,
    RejectionArm,
    StarsArm,
    VanillaArm,
    evaluate,
)
from stars_engine.evaluation.arms import AnyArm
from stars_engine.evaluation.store import AnswerRecord
from stars_engine.evaluation.thresholds import Thresholds

OPENING = " was great"
OPENED = (Alternative(opening=OPENING, share=1.0),)
PREFACE = (Alternative(preface="Well. ", share=0.5),)
MODEL = str(resources.files("stars_engine") / "embedded" / "lm")


def by_opening(prompt: str, answer: str) -> float:
    return float(answer.startswith(OPENING)) + len(answer) / 1e4


def small_recipe(arms: dict[str, AnyArm], **changes: object) -> Recipe:
    return Recipe(
        **{
            "name": "proposals",
            "config": StarsConfig(model=MODEL, reward=by_opening),
            "prompts": PromptSet(tuning=0, fresh=2),
            "sampling": SamplingParams(max_tokens=8),
            "perplexity": False,
            "num_samples": 0,
            "arms": arms,
            **changes,
        }
    )


def answers(folder: Path, arm: str) -> list[str]:
    records = map(
        AnswerRecord.model_validate_json, (folder / "answers.jsonl").read_text().splitlines()
    )
    return [result.text for record in records if record.arm == arm for result in record.results]


def test_arms_draw_from_their_own_proposals(tmp_path: Path) -> None:
    recipe = small_recipe(
        {
            "vanilla": VanillaArm(),
            "vanilla, opened": VanillaArm(alternatives=OPENED),
            "best of 2, opened": BestOfNArm(n=2, alternatives=OPENED),
            "best of 3, opened": BestOfNArm(n=3, alternatives=OPENED),
            "best of 2": BestOfNArm(n=2),
            "blockwise, opened": BlockwiseArm(m=2, segment_len=4, alternatives=OPENED),
        }
    )
    evaluation = evaluate(recipe, tmp_path)
    for arm in recipe.arms:
        opened = [text.startswith(OPENING) for text in answers(tmp_path, arm)]
        assert opened == [arm.endswith("opened")] * 2, arm
    # What Best-of-N is expected to reach is a matter of plain answers.
    assert recipe.largest_best_of == "best of 2"
    vanilla = evaluation.fresh.arms["vanilla, opened"].judges["guide"].reward.value
    assert vanilla > 1 > evaluation.fresh.arms["vanilla"].judges["guide"].reward.value


def test_a_changed_proposal_is_generated_again(tmp_path: Path) -> None:
    arms: dict[str, AnyArm] = {"vanilla": VanillaArm()}
    evaluate(small_recipe(arms), tmp_path)
    config = StarsConfig(model=MODEL, reward=by_opening, align=AlignParams(alternatives=OPENED))
    evaluate(small_recipe(arms, config=config), tmp_path)
    opened = [text.startswith(OPENING) for text in answers(tmp_path, "vanilla")]
    assert opened == [False, False, True, True]


@pytest.mark.parametrize(
    "arm", [VanillaArm(), BestOfNArm(n=2), BlockwiseArm(m=2), RejectionArm(target=0.0)]
)
def test_the_recipes_proposals_are_the_default(arm: AnyArm, tmp_path: Path) -> None:
    config = StarsConfig(align=AlignParams(alternatives=PREFACE))
    thresholds = Thresholds(tmp_path, (), SamplingParams(max_tokens=8))

    def resolved(arm: AnyArm) -> AlignParams:
        def unused(*_: object) -> None:
            raise AssertionError("no model is needed")

        return thresholds.resolve(arm, config, unused, "key", unused)  # type: ignore[arg-type]

    assert resolved(arm).alternatives == PREFACE
    assert resolved(arm.replace(alternatives=())).alternatives == ()
    assert resolved(arm.replace(alternatives=OPENED)).alternatives == OPENED
    own = StarsArm(align={"schedule": {"kind": "none"}, "alternatives": OPENED})
    assert resolved(own).alternatives == OPENED


def test_shares_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"shares of alternatives add up to 1\.5; allowed"):
        VanillaArm(alternatives=(*OPENED, *PREFACE))


def test_a_value_head_scores_other_proposals() -> None:
    recipe = small_recipe(
        {"vanilla": VanillaArm(), "opened": VanillaArm(alternatives=OPENED)},
        config={"model": "my/model", "reward": {"kind": "value", "name_or_path": "head"}},
    )
    assert recipe.arms["opened"].has_recipe_models

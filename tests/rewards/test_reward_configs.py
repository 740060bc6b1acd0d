"""Reward configs: messages, files, names, and the output of `stars doctor`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    ClassifierReward,
    CompositeReward,
    ConfigError,
    ConstantSchedule,
    FunctionReward,
    ProcessReward,
    StarsConfig,
    StarsEngine,
    YesNoReward,
)
from stars_engine.cli.doctor import _describe_reward
from stars_engine.config.rewards.process import CONVENTIONS
from stars_engine.config.rewards.yes_no import PRESETS
from stars_engine.integrations import identity
from stars_engine.rewards.function import FunctionRewardModel
from stars_engine.runtime.registry import key_of

FIXED = AlignParams(schedule=ConstantSchedule(value=0.0))


def composite(part: Any) -> CompositeReward:
    return CompositeReward(parts={"tone": part})


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ClassifierReward(name_or_path="a", output="odds"), ["output", "'odds'", "'log_odds'"]),
        (lambda: ClassifierReward(name_or_path="a", template="{prompt}"), ["template", "{completion} exactly once"]),
        (lambda: ClassifierReward(name_or_path="a", template="{completion}{completion}"), ["exactly once"]),
        (lambda: ClassifierReward(name_or_path="a", template="{completion}{prompt}"), ["{prompt} must precede {completion}"]),
        (lambda: ClassifierReward(name_or_path="a", template="a{bos}{completion}"), ["{bos}", "beginning"]),
        (
            lambda: ClassifierReward(name_or_path="a", read="ids", template="{completion}"),
            ["read='ids'", "template", "no effect"],
        ),
        (lambda: ClassifierReward(name_or_path="a", on_overflow="cut"), ["on_overflow", "'cut'", "'truncate'"]),
        (lambda: ClassifierReward(name_or_path="a", on_failure="accept"), ["on_failure", "'accept'", "'reject'"]),
        (lambda: ClassifierReward(name_or_path="a", max_retries=5), ["max_retries=5", "on_failure='retry'"]),
        (lambda: ClassifierReward(name_or_path="a", retry_wait_s=1), ["retry_wait_s", "unknown field"]),
        (lambda: FunctionReward(function=len, max_retries=0), ["max_retries", "0", ">= 1"]),
        (lambda: FunctionReward(function=len, retry_wait_s=2.0), ["retry_wait_s=2.0", "on_failure='retry'"]),
        (lambda: FunctionReward(function=len, on_failure="retry", retry_wait_s=-1), ["retry_wait_s", "-1", ">= 0"]),
        (lambda: FunctionReward(function=len, by="ids"), ["by", "'ids'", "'input'"]),
        (lambda: FunctionReward(function=len, timeout_s=0), ["timeout_s", "0", "> 0"]),
        (lambda: ProcessReward(name_or_path="a"), ["step_separator, marker, head missing", "none of them", "skywork-prm"]),
        (lambda: ProcessReward(name_or_path="a", marker="[S]"), ["step_separator, head missing", "got marker='[S]'"]),
        (lambda: ClassifierReward(name_or_path="a", label=-1), ["label", "-1", "an integer >= 0 or text"]),
        (lambda: ClassifierReward(name_or_path="a", floor=math.inf), ["floor", "inf", "every candidate is vetoed"]),
        (lambda: composite({"reward": "a/b", "floor": math.inf}), ["parts.tone.floor", "inf", "vetoed"]),
        (lambda: CompositeReward(parts={"a": "a/b"}, floor=math.inf), ["floor", "inf", "vetoed"]),
        (
            lambda: ClassifierReward(name_or_path="a", template="{question} {completion}"),
            ["template", "unknown placeholder {question}", "write {prompt} for the prompt"],
        ),
        (lambda: YesNoReward(name_or_path="a", instruction="{user}: {completion}?"), ["instruction", "{user}", "{policy}"]),
        (lambda: ProcessReward(name_or_path="a", convention="prm"), ["convention", "'prm'", "'math-shepherd'"]),
        (
            lambda: ProcessReward(name_or_path="a", convention="skywork-prm", head="tokens"),
            ["positive and negative", "positive=None, negative=None"],
        ),
        (
            lambda: ProcessReward(name_or_path="a", convention="skywork-prm", positive="+"),
            ["positive", "head='tokens'"],
        ),
        (lambda: ProcessReward(name_or_path="a", convention="math-shepherd", label=1), ["label=1", "head='classifier'"]),
        (
            lambda: ProcessReward(name_or_path="a", convention="math-shepherd", negative=" +"),
            ["two different tokens", "positive=' +', negative=' +'"],
        ),
        (
            lambda: ProcessReward(name_or_path="a", convention="skywork-prm", aggregate="max"),
            ["aggregate", "'max'", "'product'"],
        ),
        (lambda: YesNoReward(name_or_path="a"), ["instruction", "template", "preset", "none of them"]),
        (
            lambda: YesNoReward(name_or_path="a", instruction="{completion}", template="{completion}"),
            ["instruction and template"],
        ),
        (lambda: YesNoReward(name_or_path="a", instruction="Good?"), ["instruction", "{completion}"]),
        (lambda: YesNoReward(name_or_path="a", instruction="{bos}{completion}"), ["{bos}", "template"]),
        (lambda: YesNoReward(name_or_path="a", preset="guard"), ["preset", "'guard'", "'shieldgemma'"]),
        (
            lambda: YesNoReward(name_or_path="a", instruction="{completion}", policy="x"),
            ["policy='x'", "{policy}"],
        ),
        (
            lambda: YesNoReward(name_or_path="a", instruction="{policy}{completion}"),
            ["policy=None", "{policy}", "required"],
        ),
        (
            lambda: YesNoReward(name_or_path="a", instruction="{completion}", positive="No"),
            ["positive and negative are both 'No'"],
        ),
        (lambda: CompositeReward(parts={}), ["parts", "at least one part"]),
        (lambda: CompositeReward(parts={"": "a/b"}), ["parts", "an empty name"]),
        (lambda: CompositeReward(parts=["a/b"]), ["parts", "tone"]),
        (lambda: composite({"reward": "a/b", "std": 0}), ["parts.tone.std", "0", "> 0"]),
        (lambda: composite({"reward": "a/b", "weight": math.inf}), ["parts.tone.weight", "inf"]),
        (lambda: composite({"reward": "a/b", "floor": math.nan}), ["parts.tone.floor", "nan"]),
        (lambda: composite({"reward": {"kind": "oracle"}}), ["parts.tone.reward", "'oracle'", "classifier, process"]),
        (lambda: composite({"kind": "classifier", "name_or_pth": "a"}), ["parts.tone.reward.name_or_pth", "did you mean"]),
        (lambda: composite({"reward": "a/b", "wieght": 1}), ["parts.tone.wieght", "did you mean `weight`"]),
        (
            lambda: StarsConfig(model="a/b", reward={"kind": "composite", "parts": {"x": {"reward": 3}}}, align=FIXED),
            ["reward.parts.x.reward"],
        ),
    ],
)  # fmt: skip
def test_every_bad_value_gives_one_clear_message(
    build: Callable[[], object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build()
    message = str(caught.value)
    assert len(caught.value.problems) == 1, message
    assert "\n" not in message
    assert "pydantic" not in message
    for word in words:
        assert word in message


def test_braces_of_commands_and_of_data_are_text() -> None:
    for text in (r"\boxed{answer}", '{"a": 1}', "{ }", "x{n}"):
        template = f"Say {text}: {{prompt}} {{completion}}"
        assert ClassifierReward(name_or_path="a", template=template).template == template


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@pytest.mark.parametrize(
    "reward",
    [
        ClassifierReward(
            name_or_path="a/b", output="probability", template="{bos}{prompt}|{completion}\n"
        ),
        ProcessReward(name_or_path="a/b", convention="math-shepherd", aggregate="min"),
        ProcessReward(
            name_or_path="a/b", step_separator="\n", marker="[S]", head="classifier", label="good"
        ),
        YesNoReward(
            name_or_path="a/b", preset="shieldgemma", policy="* No «shouting».\n* Ни слова."
        ),
        YesNoReward(name_or_path="a/b", instruction="{prompt}: {completion}?", floor=-1.5),
        FunctionReward(function="math:sin", on_failure="retry", max_retries=7, retry_wait_s=0.25),
        FunctionReward(function="math:sin", by="input", on_failure="reject", timeout_s=None),
        CompositeReward(floor=0.5, parts={"a": "c/d", "b": {"reward": "math:sin", "floor": -1}}),
    ],
    ids=lambda reward: reward.kind,
)
def test_configs_survive_files(tmp_path: Path, suffix: str, reward: Any) -> None:
    config = StarsConfig(model="a/b", reward=reward, align=FIXED)
    path = tmp_path / f"stars{suffix}"
    config.to_file(path)
    again = StarsConfig.from_file(path)
    assert again == config
    assert key_of(again.reward) == key_of(config.reward)


def test_fields_replace_those_of_a_convention() -> None:
    for name, convention in CONVENTIONS.items():
        assert ProcessReward(name_or_path="a", convention=name).resolved() == convention
    own = ProcessReward(
        name_or_path="a",
        convention="qwen2.5-math-prm",
        head="tokens",
        positive="good",
        negative="bad",
        after_marker="\n",
    ).resolved()
    assert (own.marker, own.label, own.positive) == ("<extra_0>", None, "good")
    assert own.after_marker == "\n"


def test_fields_replace_those_of_a_preset() -> None:
    for name, judging in PRESETS.items():
        assert YesNoReward(name_or_path="a", preset=name).resolved() == judging
    with_policy = YesNoReward(name_or_path="a", preset="llama-guard", policy="S1: x").resolved()
    assert "{policy}" in with_policy.template
    own = YesNoReward(name_or_path="a", preset="llama-guard", instruction="{completion}?")
    assert own.resolved().template is None
    assert own.resolved().positive == "safe"


def test_only_the_embedded_reward_as_it_is_has_thresholds() -> None:
    """Its probability is on another scale than the thresholds in the package."""
    plain = ClassifierReward(name_or_path="stars:embedded-reward", floor=-3.0, on_failure="reject")
    assert StarsConfig(reward=plain).uses_embedded_pair
    for more in ({"output": "probability"}, {"template": "{completion}"}):
        with pytest.raises(ConfigError, match="model is required"):
            StarsConfig(reward=plain.replace(**more))


def test_identities_show_live_objects() -> None:
    config = StarsConfig(
        model="a/b", reward=CompositeReward(parts={"f": len, "c": "c/d"}), align=FIXED
    )
    parts = identity(config)["reward"]["parts"]
    shown = parts["f"]["reward"]["function"]
    assert shown.startswith("len in memory, number ")
    again = CompositeReward(parts={"f": len, "g": max, "c": "c/d"})
    others = identity(config.replace(reward=again))["reward"]["parts"]
    assert others["f"]["reward"]["function"] == shown  # the same object
    assert others["g"]["reward"]["function"].split(", ")[-1] != shown.split(", ")[-1]
    assert parts["c"]["reward"]["name_or_path"] == "c/d"
    assert parts["c"]["weight"] == 1.0


def test_doctor_names_every_part(engine: StarsEngine) -> None:
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=CompositeReward(parts={"tone": "stars:embedded-reward", "length": len}),
        align=FIXED,
    )
    with StarsEngine(config, model=engine.model) as mine:
        rows = _describe_reward(mine)
    assert rows["reward"] == "composite of tone, length"
    assert rows["  tone"] == "stars:embedded-reward"
    assert "parameters" in rows["    tone class"]
    assert rows["    length class"] == FunctionRewardModel.__name__

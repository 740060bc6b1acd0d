"""Build the config of a run from a config file and options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from stars_engine.cli.messages import messages
from stars_engine.cli.progress import Wait
from stars_engine.config import AlignParams, ModelConfig, RewardConfig, StarsConfig
from stars_engine.config.presets import PRESET_NAMES, preset
from stars_engine.config.root import embedded_align
from stars_engine.files.config_files import refuse_imports
from stars_engine.schedules import CalibratedSchedule
from stars_engine.schema import Schema


def shown(kind: type[Schema], field: str, text: str) -> str:
    """Return the help of an option with the default of its field, if it has one."""
    default = kind.model_fields[field].default
    if default in (None, ()):
        return text
    own = getattr(embedded_align(), field) if kind is AlignParams else default
    return f"{text} Default: {default}{'' if own == default else f' (embedded pair: {own})'}."


def given(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def read_schedule(
    threshold: float | None,
    target: float | None,
    initial: float | None,
    initial_weight: float | None,
    path: Path | None = None,
    *,
    allow_imports: bool = True,
) -> dict[str, Any] | CalibratedSchedule | None:
    """Return the schedule that the options describe, or None if they describe none."""
    start = given(initial=initial, initial_weight=initial_weight)
    if path is not None:
        if threshold is not None or target is not None or start:
            raise typer.BadParameter(
                "--schedule FILE cannot be combined with --threshold, --target, --initial and "
                "--initial-weight. Hint: give the file, or thresholds"
            )
        return CalibratedSchedule.from_file(path, allow_imports=allow_imports)
    if threshold is not None and (target is not None or start):
        raise typer.BadParameter(
            "--threshold cannot be combined with --target, --initial and --initial-weight. "
            "Hint: give --threshold, or --target with --initial"
        )
    if threshold is not None:
        return {"kind": "constant", "value": threshold}
    if target is not None:
        return {"kind": "linear", "target": target, **start}
    if start:
        raise typer.BadParameter("--initial and --initial-weight need --target. Hint: add --target")
    return None


def read_config(
    path: Path | None,
    model: str | None,
    reward: str | None,
    *,
    sampling: dict[str, Any],
    align: dict[str, Any],
    preset_name: str | None = None,
    prompt_format: str | None = None,
    allow_imports: bool = True,
) -> StarsConfig:
    """Read the file, or start from the defaults, and apply the options that were given.

    Raises:
        ConfigError: The file or an option is invalid, or names code although imports are refused.
    """
    base = _read_file(path, allow_imports=allow_imports)
    _name_options(model, reward)
    own_pair = _is_another(model, base.model) or _is_another(reward, base.reward)
    if own_pair:
        _check_own_pair(path, model, reward)
        if preset_name is None and "schedule" not in align:
            _check_thresholds(base, path)
    changes: dict[str, Any] = given(model=model, prompt_format=prompt_format)
    if reward is not None:
        is_callable = ":" in reward and not reward.startswith("stars:")
        changes["reward"] = {"kind": "function", "function": reward} if is_callable else reward
    if sampling:
        if base.sampling == "model":
            raise typer.BadParameter(
                f"{path} has sampling: model, which options cannot change; write the settings in "
                "the file, or leave the options out"
            )
        changes["sampling"] = base.sampling.replace(**sampling)
    if preset_name is not None:
        changes["align"] = _preset(preset_name, align)
    elif own_pair or align:
        changes["align"] = _test_of(base, own_pair=own_pair).replace(**align)
    settings = base.replace(**changes)
    if not allow_imports:
        import_nothing(settings)
    return settings


def _name_options(model: str | None, reward: str | None) -> None:
    """Let errors about these models name the options that gave them."""
    for option, value in given(model=model, reward=reward).items():
        for field in ("name_or_path", "function"):
            messages.phrases[f"{field}={value!r}"] = f"--{option} {value}"


def check_judge(option: str | None, judge: RewardConfig | None, *, name: str = "") -> None:
    """Check the judge of an option before anything is loaded; let errors name the option.

    Args:
        option: The value of --judge.
        judge: The reward that it means.
        name: What stands before the value, such as "NAME=".

    Raises:
        ModelLoadError: A function cannot be imported, or a directory does not exist.
    """
    if option is None or judge is None:
        return
    for field in ("name_or_path", "function"):
        messages.phrases[f"{field}={option!r}"] = f"--judge {name}{option}"
    with Wait(f"checking --judge {name}{option}"):
        from stars_engine.rewards.loading import check_reward

        check_reward(judge)


def check_preset(name: str, allowed: Sequence[str] = PRESET_NAMES) -> str:
    """Return the name of a preset unchanged.

    Raises:
        BadParameter: It is not one of the allowed names.
    """
    if name not in allowed:
        raise typer.BadParameter(
            f"unknown preset {name!r}; allowed: {', '.join(allowed)}. Hint: use best"
        )
    return name


def _preset(name: str, align: dict[str, Any]) -> AlignParams:
    """Return a preset with the options that were given; say which of them win."""
    check_preset(name)
    ramp = align.get("schedule")
    if ramp is None:
        return preset(name, **align)
    if name == "paper" and isinstance(ramp, dict) and ramp["kind"] == "linear":
        align = {**align, **ramp}  # --target and --initial are settings of the preset
        del align["schedule"], align["kind"]
    else:
        messages.say(f"the thresholds that are given replace those of --preset {name}")
    return preset(name, **align)


def _read_file(path: Path | None, *, allow_imports: bool) -> StarsConfig:
    """Read the config file, whose errors name its fields and not options."""
    if path is None:
        return StarsConfig()
    options, messages.option_names = messages.option_names, {}
    config = StarsConfig.from_file(path, allow_imports=allow_imports)
    messages.option_names = options
    return config


def import_nothing(settings: Schema) -> None:
    """Refuse names of code, and stop importing modules from the current directory."""
    refuse_imports("options", settings)
    if "" in sys.path:
        sys.path.remove("")


def _is_another(name: str | None, part: ModelConfig | RewardConfig) -> bool:
    own = getattr(part, "name_or_path", None) or getattr(part, "function", None)
    return name is not None and name != own


def _test_of(base: StarsConfig, *, own_pair: bool) -> AlignParams:
    """Return the alignment settings of the file; the embedded pair's do not fit other models."""
    return AlignParams() if own_pair and "align" not in base.model_fields_set else base.align


def _check_thresholds(base: StarsConfig, path: Path | None) -> None:
    """Refuse the thresholds of a file for other models."""
    if "align" in base.model_fields_set and base.align.schedule:
        raise typer.BadParameter(
            f"thresholds belong to one pair of models, and those of {path} were made for "
            "another pair. Hint: give --preset best, --schedule FILE, --threshold or --target"
        )


def _check_own_pair(path: Path | None, model: str | None, reward: str | None) -> None:
    """Refuse a change of only one model of the embedded pair."""
    if path is None and (model is None or reward is None):
        missing, other, example = (
            ("--reward", "--model", "Skywork/Skywork-Reward-V2-Qwen3-0.6B")
            if reward is None
            else ("--model", "--reward", "stars:embedded-lm")
        )
        raise typer.BadParameter(
            f"{missing} is required with {other}; only without both is the pair inside the package "
            f"used. Hint: for example, {missing} {example}"
        )

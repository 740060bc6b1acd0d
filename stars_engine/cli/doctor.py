"""`stars doctor`: show versions, devices and models, then what is wrong."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from stars_engine.cli.loading import loaded
from stars_engine.cli.options import ConfigOption, ModelOption, NoImportsOption, RewardOption
from stars_engine.cli.output import cell, write
from stars_engine.cli.settings import read_config
from stars_engine.schedules import NoSchedule

if TYPE_CHECKING:
    from stars_engine.engine.engine import StarsEngine

_PACKAGES = (
    "stars-engine",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "pydantic",
)


def doctor_command(
    *,
    config: ConfigOption = None,
    model: ModelOption = None,
    reward: RewardOption = None,
    no_imports: NoImportsOption = False,
) -> None:
    """Show versions, devices, both models and how they run. Loads both models.

    Whatever is wrong with the models, the versions are printed first.
    """
    _print(_versions())
    _print(_surroundings())  # imports torch
    # Nothing is scored, so no thresholds are needed.
    align = {} if (model, reward) == (None, None) else {"schedule": NoSchedule()}
    settings = read_config(
        config, model, reward, sampling={}, align=align, allow_imports=not no_imports
    )
    with loaded(settings) as (engine, wait):
        wait.end()
        _print(_describe_model(engine).items())
        _print(_describe_reward(engine).items())


def _print(rows: Iterable[tuple[str, str]]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:  # programs read it: one line for each row, and no padding
        for name, value in rows:
            write(f"{name:13} {value}")
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True, min_width=14)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(cell(name), cell(value))
    console.print(table)


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in _PACKAGES:
        yield name, _version(name)


def _surroundings() -> Iterator[tuple[str, str]]:
    from stars_engine.calibration.cache import described_cache

    yield from _devices()
    yield "calibrations", described_cache()


def _devices() -> Iterator[tuple[str, str]]:
    if importlib.util.find_spec("torch") is None:
        return
    try:
        import torch
    except Exception as error:  # noqa: BLE001 - a broken installation of torch must be reported
        yield "torch", f"cannot be imported: {error}"
        return
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield "cuda", ", ".join(names) or "none"
    yield "mps", "available" if torch.backends.mps.is_available() else "none"
    yield "cpu threads", str(torch.get_num_threads())


def _describe_model(engine: StarsEngine) -> dict[str, str]:
    from stars_engine.backends.transformers import TransformersBackend
    from stars_engine.chat.template import has_template

    backend = engine.model
    if not isinstance(backend, TransformersBackend):
        about: dict[str, str] = getattr(backend, "about", dict)()
        rows = {f"  {name}": value for name, value in about.items()}
        return {"model": engine.config.model.shown_name if rows else type(backend).__name__, **rows}
    model = backend.model
    return {
        "model": engine.config.model.shown_name,
        "  class": f"{type(model).__name__}, {model.num_parameters():,} parameters",
        "  placement": f"{model.device}, {model.dtype}",
        "  context": f"{backend.context_len or 'unlimited'} tokens",
        "  vocabulary": str(backend.vocab_size),
        "  prompts": "chat template" if has_template(backend.codec) else "raw text",
        "  decoding": backend.path,
    }


def _describe_reward(engine: StarsEngine) -> dict[str, str]:
    from stars_engine.rewards.base import describe
    from stars_engine.rewards.composite import CompositeRewardModel

    reward = engine.reward
    rows = {"reward": describe(reward)}
    parts = reward.named_models() if isinstance(reward, CompositeRewardModel) else {"": reward}
    for name, part in parts.items():
        if name:
            rows[f"  {name}"] = describe(part)
        indent = "    " if name else "  "
        about = getattr(part, "about", lambda part=part: {"class": type(part).__name__})()
        # Rows are keyed by name, so the name of the part makes them unique.
        rows |= {f"{indent}{name} {key}" if name else f"  {key}": about[key] for key in about}
    return rows


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"

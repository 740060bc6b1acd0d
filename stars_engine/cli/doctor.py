"""`stars doctor`: show versions, devices and models."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stars_engine.cli.output import visible
from stars_engine.config import StarsConfig
from stars_engine.engine.engine import StarsEngine
from stars_engine.errors import needs_extra
from stars_engine.rewards.composite import CompositeRewardModel

_PACKAGES = (
    "stars-engine",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "peft",
    "pydantic",
)


def run_doctor(config: StarsConfig) -> None:
    """Print versions and devices, load both models, and describe them."""
    with needs_extra("local"):
        import torch
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for name in _PACKAGES:
        table.add_row(name, _version(name))
    table.add_row("cuda", _cuda())
    table.add_row("mps", "available" if torch.backends.mps.is_available() else "none")
    table.add_row("cpu threads", str(torch.get_num_threads()))
    with StarsEngine(config) as engine:  # closed, so that its thread ends with the command
        for about in (_describe_model(engine), _describe_reward(engine)):
            for name, value in about.items():
                table.add_row(_cell(name), _cell(value))
    Console(highlight=False).print(table)


def _cell(text: str) -> Text:
    """Show names of models and parts verbatim, without reading markup in them."""
    return Text(visible(text) if sys.stdout.isatty() else text)


def _describe_model(engine: StarsEngine) -> dict[str, str]:
    from stars_engine.backends.transformers import TransformersBackend
    from stars_engine.chat.template import has_template

    backend = engine.model
    if not isinstance(backend, TransformersBackend):
        about = getattr(backend, "about", dict)()
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


def _cuda() -> str:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names) or "none"

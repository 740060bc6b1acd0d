"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="A YAML or JSON file; default: the embedded pair."),
]
ModelOption = Annotated[str | None, typer.Option(help="Language model: hub name or directory.")]
RewardOption = Annotated[
    str | None,
    typer.Option(help="Reward model: hub name or directory, or 'package.module:name' to call."),
]
PilotPromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="Prompts like those of later use: one a line, or JSON lines {prompt: …}. "
        "Default: a neutral set.",
    ),
]
NoImportsOption = Annotated[
    bool,
    typer.Option(
        "--no-imports",
        help="Refuse a config file or option that names Python code to run: 'package.module:name', "
        "trust_remote_code.",
    ),
]

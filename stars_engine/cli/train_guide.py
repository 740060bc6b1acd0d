"""`stars train-guide`: fit a guide to a language model's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TimeRemainingColumn

from stars_engine.cli.loading import loaded
from stars_engine.cli.messages import messages
from stars_engine.cli.options import (
    ConfigOption,
    ModelOption,
    NoImportsOption,
    PilotPromptsOption,
    RewardOption,
)
from stars_engine.cli.output import write
from stars_engine.cli.progress import bars
from stars_engine.cli.prompts import read_prompts
from stars_engine.cli.settings import check_judge, given, read_config
from stars_engine.config.rewards import as_reward
from stars_engine.files.config_files import refuse_imports


def train_guide_command(
    *,
    config: ConfigOption = None,
    model: ModelOption = None,
    reward: RewardOption = None,
    no_imports: NoImportsOption = False,
    prompts_file: PilotPromptsOption = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="What to predict: a reward model, or 'package.module:name'. Default: the reward "
            "of the config."
        ),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="Labelled answers instead: JSON lines {prompt: …, answer: …, score: …}."),
    ] = None,
    num_answers: Annotated[int, typer.Option(help="Answers per prompt.")] = 16,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of an answer.")] = None,
    shape: Annotated[
        str, typer.Option(help="linear, mlp, auto, or lora: a classifier (extra peft).")
    ] = "auto",
    soft_value_beta: Annotated[
        float | None, typer.Option(help="Fit the soft value with this beta, not the mean.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the answers and of the fit.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("guide"),
) -> None:
    """Fit a guide to a language model. Resumes where it was interrupted."""
    settings = read_config(
        config,
        model,
        reward,
        sampling=given(max_tokens=max_tokens),
        align={},
        allow_imports=not no_imports,
    )
    judging = as_reward(judge)
    if no_imports and judging is not None:
        refuse_imports("--judge", judging)
    check_judge(judge, judging)
    prompts = None if prompts_file is None else read_prompts(prompts_file)
    if (out / "report.json").exists():
        messages.say(
            f"{out} holds a guide: its samples are used again, and judging and fitting are repeated"
        )
    with loaded(settings) as (engine, wait), bars(TimeRemainingColumn()) as advance:
        from stars_engine.guides.train import train_guide

        wait.end()
        report = train_guide(
            engine,
            out,
            prompts,
            judge=judging,
            answers=answers,
            num_answers=num_answers,
            shape=shape,
            soft_value_beta=soft_value_beta,
            seed=seed,
            progress=advance,
        )
    write(report.summary())
    where = f"name_or_path={str(out)!r}"
    guide = f"ClassifierReward({where}, read='ids')" if shape == "lora" else f"ValueReward({where})"
    messages.say(f"guide written to {out}; use it with {guide}")

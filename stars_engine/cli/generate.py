"""`stars generate`: the options of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stars_engine.cli.options import ConfigOption, ModelOption, NoImportsOption, RewardOption
from stars_engine.cli.prompts import PromptRecord, read_records
from stars_engine.cli.settings import given, read_config, read_schedule, shown
from stars_engine.config import AlignParams, SamplingParams, StarsConfig
from stars_engine.config.presets import PRESET_NAMES


def generate_command(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; '-' or nothing reads it from stdin.")
    ] = None,
    *,
    config: ConfigOption = None,
    model: ModelOption = None,
    reward: RewardOption = None,
    no_imports: NoImportsOption = False,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="A file with one prompt a line, or JSON lines with prompt or messages, and an id.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help=shown(SamplingParams, "max_tokens", "Completion tokens at most.")),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help=shown(SamplingParams, "temperature", "0 is greedy."))
    ] = None,
    top_k: Annotated[
        str | None,
        typer.Option(
            metavar="INTEGER|all",
            help=shown(SamplingParams, "top_k", "Keep the k likeliest tokens."),
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help=shown(SamplingParams, "top_p", "Keep this much probability.")),
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help=shown(SamplingParams, "min_p", "Drop the unlikely."))
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the answer; repeatable.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same text; without one, a fresh one.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", help=shown(SamplingParams, "n", "Answers per prompt."))
    ] = None,
    segment_len: Annotated[
        int | None, typer.Option(help=shown(AlignParams, "segment_len", "Tokens judged together."))
    ] = None,
    segment_end: Annotated[
        str | None,
        typer.Option(help=shown(AlignParams, "segment_end", "length, sentence or entropy.")),
    ] = None,
    max_entropy: Annotated[
        float | None, typer.Option(help="For segment-end entropy: nats, such as 3.")
    ] = None,
    lookahead: Annotated[
        int | None,
        typer.Option(help=shown(AlignParams, "lookahead", "Greedy tokens scored behind a draft.")),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(help=shown(AlignParams, "beta", "Acceptance softness; 0 is a hard test.")),
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option(help=shown(AlignParams, "max_attempts", "Draws per segment."))
    ] = None,
    num_candidates: Annotated[
        str | None,
        typer.Option(
            metavar="INTEGER|auto",
            help=shown(
                AlignParams, "num_candidates", "Drafted at once; changes speed, never text."
            ),
        ),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="A constant threshold.")] = None,
    target: Annotated[float | None, typer.Option(help="End of a linear threshold.")] = None,
    initial: Annotated[float | None, typer.Option(help="Beginning of it.")] = None,
    initial_weight: Annotated[
        float | None, typer.Option(help="Or how near the target it begins, 0 to 1.")
    ] = None,
    schedule: Annotated[
        Path | None, typer.Option(help="Thresholds that `stars calibrate` wrote.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Named settings: {', '.join(PRESET_NAMES)}. Thresholds and other options that "
            "are given with it replace its own."
        ),
    ] = None,
    terminal: Annotated[
        str | None,
        typer.Option(
            help=shown(
                AlignParams, "terminal", "For the end of an answer: schedule, target or a number."
            )
        ),
    ] = None,
    on_exhausted: Annotated[
        str | None,
        typer.Option(
            help=shown(AlignParams, "on_exhausted", "best, last, stop, raise or fallback.")
        ),
    ] = None,
    fallback_text: Annotated[str | None, typer.Option(help="For on-exhausted fallback.")] = None,
    keep_rejected_text: Annotated[
        bool, typer.Option("--keep-rejected-text", help="Also record the text of rejected drafts.")
    ] = False,
    prompt_format: Annotated[
        str | None,
        typer.Option(help=shown(StarsConfig, "prompt_format", "auto, chat, raw or rendered.")),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results as JSON lines.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Also write results to this file, for `stars show`.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the --trace FILE of an interrupted run.")
    ] = False,
) -> None:
    """Generate aligned text. One prompt streams its segments, several show progress.

    The exit status is 3 if an answer was refused, because no draft of a segment was accepted.
    """
    if prompt not in (None, "-") and prompts_file is not None:
        raise typer.BadParameter("give a prompt or --prompts FILE, not both")
    if resume and trace is None:
        raise typer.BadParameter("--resume needs --trace FILE, the file to continue")
    sampling = given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=_count(top_k),
        top_p=top_p,
        min_p=min_p,
        stop=stop,
        seed=seed,
        n=n,
    )
    if top_k == "all":
        sampling["top_k"] = None
    align = given(
        schedule=read_schedule(
            threshold, target, initial, initial_weight, schedule, allow_imports=not no_imports
        ),
        segment_len=segment_len,
        segment_end=segment_end,
        max_entropy=max_entropy,
        lookahead=lookahead,
        beta=beta,
        max_attempts=max_attempts,
        num_candidates=_count(num_candidates),
        terminal=terminal,
        on_exhausted=on_exhausted,
        fallback_text=fallback_text,
        keep_rejected_text=keep_rejected_text or None,
    )
    settings = read_config(
        config,
        model,
        reward,
        sampling=sampling,
        align=align,
        preset_name=preset,
        prompt_format=prompt_format,
        allow_imports=not no_imports,
    )
    records = (
        read_records(prompts_file) if prompt is None or prompt == "-" else [PromptRecord(prompt)]
    )
    from stars_engine.cli.answers import run_generate

    if run_generate(records, settings, as_json=as_json, trace=trace, resume=resume):
        raise typer.Exit(3)


def _count(text: str | None) -> int | str | None:
    """Convert a number; the config validates other values."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return text

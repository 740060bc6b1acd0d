"""The commands, their options, and how errors end a command."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stars_engine.cli.calibrate import calibrate_command
from stars_engine.cli.compare import compare_command, report_command, sweep_command
from stars_engine.cli.messages import LogMessages, is_broken_pipe, messages
from stars_engine.cli.options import ConfigOption, ModelOption, NoImportsOption, RewardOption
from stars_engine.cli.output import visible, write
from stars_engine.cli.settings import given, read_config, read_schedule, shown
from stars_engine.cli.train_guide import train_guide_command
from stars_engine.config import AlignParams, SamplingParams, StarsConfig
from stars_engine.config.presets import PRESET_NAMES
from stars_engine.errors import StarsError
from stars_engine.schedules import NoSchedule


class _Commands(TyperGroup):
    """The commands. typer quotes invalid arguments in its errors, so they are made visible."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        with _quoted_visibly():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _quoted_visibly():
            return super().invoke(ctx)


@contextmanager
def _quoted_visibly() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        usage: Any = error  # an error of click, or of typer's own copy of click
        if hasattr(error, "format_message") and sys.stderr.isatty():
            usage.message = visible(usage.message)
        raise


app = typer.Typer(
    cls=_Commands,
    help="Align a language model's text while it is generated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    # Typer's frames wrap messages at 80 columns, so use them only on a terminal.
    rich_markup_mode="rich" if sys.stderr.isatty() else None,
)

INTERRUPTED = 130  # the status of shells for a command that Ctrl-C ended


def main() -> None:
    """Run the command line. Errors print one message and exit with status 2, Ctrl-C with 130."""
    # Small weights load in a second, and progress bars of transformers would hide the output.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.showwarning = messages.say_warning
    logging.lastResort = LogMessages(logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not support every character
        sys.stdout.reconfigure(errors="replace")
    if not sys.flags.safe_path:
        # Rewards named 'module:name' may be in this directory. It comes last, so that its files
        # cannot shadow packages.
        sys.path.append("")
    try:
        app()
    except StarsError as error:
        messages.say_error(error)
        sys.exit(2)
    except OSError as error:
        if is_broken_pipe(error):
            sys.exit(1)
        messages.say_error(error)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer converts KeyboardInterrupt to this
            messages.say("interrupted")
        raise
    except KeyboardInterrupt:
        messages.say("interrupted")
        sys.exit(INTERRUPTED)


@app.callback(invoke_without_command=True)
def _root(
    *, show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if show_version:
        write(f"stars-engine {version('stars-engine')}")
        raise typer.Exit


@app.command()
def demo(
    prompts: Annotated[list[str] | None, typer.Argument(help="Beginnings of reviews.")] = None,
    *,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same texts.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Answers per prompt and arm.")] = 4,
) -> None:
    """Show plain sampling beside STARS, segment by segment. Works offline."""
    from stars_engine.cli.demo import DEMO_PROMPTS, run_demo

    run_demo(prompts or DEMO_PROMPTS, seed=seed, num_samples=samples)


@app.command()
def generate(
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
        typer.Option("--prompts", help="A file with one prompt a line, or JSON lines {prompt: …}."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help=shown(SamplingParams, "max_tokens", "Completion tokens at most.")),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help=shown(SamplingParams, "temperature", "0 is greedy."))
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help=shown(SamplingParams, "top_k", "Keep the k likeliest; 0 keeps all.")),
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
        str | None, typer.Option(help=f"Named settings: {', '.join(PRESET_NAMES)}.")
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
    prompt_format: Annotated[
        str | None,
        typer.Option(help=shown(StarsConfig, "prompt_format", "auto, chat, raw or rendered.")),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results as JSON lines.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Also write results to this file.")] = None,
) -> None:
    """Generate aligned text. One prompt streams its segments, several show progress."""
    if prompt not in (None, "-") and prompts_file is not None:
        raise typer.BadParameter("give a prompt or --prompts FILE, not both")
    from stars_engine.cli.generate import read_prompts, run_generate

    sampling = given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        stop=stop,
        seed=seed,
        n=n,
    )
    if top_k == 0:
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
    prompts = [prompt] if prompt not in (None, "-") else read_prompts(prompts_file)
    run_generate(prompts, settings, as_json=as_json, trace=trace)


@app.command()
def doctor(
    *,
    config: ConfigOption = None,
    model: ModelOption = None,
    reward: RewardOption = None,
    no_imports: NoImportsOption = False,
) -> None:
    """Show versions, devices, both models and how they run. Loads both models."""
    from stars_engine.cli.doctor import run_doctor

    # Nothing is scored, so no thresholds are needed.
    align = {} if (model, reward) == (None, None) else {"schedule": NoSchedule()}
    settings = read_config(
        config, model, reward, sampling={}, align=align, allow_imports=not no_imports
    )
    run_doctor(settings)


app.command("calibrate")(calibrate_command)
app.command("train-guide")(train_guide_command)
app.command("compare")(compare_command)
app.command("sweep")(sweep_command)
app.command("report")(report_command)


def _count(text: str | None) -> int | str | None:
    """Convert a decimal number; the config validates other values."""
    return int(text) if text is not None and text.isdecimal() else text

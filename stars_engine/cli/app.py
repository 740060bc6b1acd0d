"""The commands, their options, and how errors end them."""

from __future__ import annotations

import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from stars_engine.config import AlignParams, StarsConfig
from stars_engine.errors import StarsError, StarsWarning
from stars_engine.schedules import NoSchedule

app = typer.Typer(
    help="Align a language model's text while it is generated.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
errors = Console(stderr=True, highlight=False)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="A YAML or JSON file; default: the embedded pair."),
]
ModelOption = Annotated[str | None, typer.Option(help="Language model: hub name or directory.")]
RewardOption = Annotated[
    str | None,
    typer.Option(help="Reward model: hub name or directory, or 'package.module:name' to call."),
]


def main() -> None:
    """Run the command line; errors of ours end it with one message and status 2."""
    # Weights load in a second: transformers' bars would only hide what is shown next.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.showwarning = _show_warning
    try:
        app()
    except StarsError as error:
        errors.print("error:", style="bold red", end=" ")
        errors.print(str(error), markup=False)
        for note in getattr(error, "__notes__", []):
            errors.print(note, markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("interrupted")
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _root(
    *, show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if show_version:
        typer.echo(f"stars-engine {version('stars-engine')}")
        raise typer.Exit


@app.command()
def demo(
    prompts: Annotated[list[str] | None, typer.Argument(help="Beginnings of reviews.")] = None,
    *,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same texts.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Answers per prompt and arm.")] = 4,
) -> None:
    """Plain sampling beside STARS, segment by segment, on the embedded pair. Offline."""
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
    prompts_file: Annotated[
        Path | None,
        typer.Option("--prompts", help="A file with one prompt a line, or JSON lines {prompt: …}."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Completion tokens at most.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest; 0 keeps all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep this much probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Drop the unlikely.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the answer; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same text.")] = None,
    n: Annotated[int | None, typer.Option("-n", help="Answers per prompt.")] = None,
    segment_len: Annotated[int | None, typer.Option(help="Tokens judged together.")] = None,
    beta: Annotated[float | None, typer.Option(help="Acceptance softness.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Draws per segment.")] = None,
    threshold: Annotated[float | None, typer.Option(help="A constant threshold.")] = None,
    target: Annotated[float | None, typer.Option(help="End of a linear threshold.")] = None,
    initial: Annotated[float | None, typer.Option(help="Beginning of it.")] = None,
    on_exhausted: Annotated[
        str | None, typer.Option(help="best, last, stop, raise or fallback.")
    ] = None,
    fallback_text: Annotated[str | None, typer.Option(help="For on-exhausted fallback.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results as JSON lines.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Also write results to this file.")] = None,
) -> None:
    """Generate aligned text; one prompt streams its segments, several show progress."""
    if prompt not in (None, "-") and prompts_file is not None:
        raise typer.BadParameter("give a prompt or --prompts FILE, not both")
    from stars_engine.cli.generate import read_prompts, run_generate

    sampling = _given(
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
    align = _given(
        schedule=_schedule(threshold, target, initial),
        segment_len=segment_len,
        beta=beta,
        max_attempts=max_attempts,
        on_exhausted=on_exhausted,
        fallback_text=fallback_text,
    )
    settings = _read_config(config, model, reward, sampling=sampling, align=align)
    prompts = [prompt] if prompt not in (None, "-") else read_prompts(prompts_file)
    run_generate(prompts, settings, as_json=as_json, trace=trace)


@app.command()
def doctor(
    *, config: ConfigOption = None, model: ModelOption = None, reward: RewardOption = None
) -> None:
    """Say what runs here, and how: versions, device, models, cache path. Loads both models."""
    from stars_engine.cli.doctor import run_doctor

    own_models = config is None and (model, reward) != (None, None)
    align = {"schedule": NoSchedule()} if own_models else {}
    run_doctor(_read_config(config, model, reward, sampling={}, align=align))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _schedule(threshold: float | None, target: float | None, initial: float | None) -> Any:
    if threshold is not None and (target is not None or initial is not None):
        raise typer.BadParameter("give --threshold, or --target with --initial")
    if threshold is not None:
        return {"kind": "constant", "value": threshold}
    if target is not None:
        return {"kind": "linear", "target": target, "initial": initial}
    if initial is not None:
        raise typer.BadParameter("--initial needs --target")
    return None


def _read_config(
    path: Path | None,
    model: str | None,
    reward: str | None,
    *,
    sampling: dict[str, Any],
    align: dict[str, Any],
) -> StarsConfig:
    """Read the file, or start from the defaults, and apply the options that were given."""
    base = StarsConfig.from_file(path) if path else StarsConfig()
    changes: dict[str, Any] = {}
    if model is not None:
        changes["model"] = model
    if reward is not None:
        is_callable = ":" in reward and not reward.startswith("stars:")
        changes["reward"] = {"kind": "function", "function": reward} if is_callable else reward
    if sampling:
        if base.sampling == "model":
            raise typer.BadParameter(
                f"{path} says sampling: model; write the settings there, or leave the options out"
            )
        changes["sampling"] = base.sampling.replace(**sampling)
    if align:
        # The embedded pair's thresholds mean nothing to other models.
        own_models = path is None and bool(changes.keys() & {"model", "reward"})
        changes["align"] = (AlignParams() if own_models else base.align).replace(**align)
    return base.replace(**changes)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, StarsWarning):
        errors.print("warning:", style="bold yellow", end=" ")
        errors.print(str(message), markup=False)

"""The list of commands, and how errors end a command."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stars_engine.cli.lazy import HELP_NAMES, Entry, LazyCommand, QuietOption, VerboseOption
from stars_engine.cli.messages import is_broken_pipe, messages
from stars_engine.cli.output import visible, write

COMMANDS = (
    Entry(
        "demo",
        "demo:demo_command",
        "Show plain sampling beside STARS, segment by segment. Works offline.",
    ),
    Entry(
        "init",
        "init:init_command",
        "Ask a few questions and write an annotated config file.",
    ),
    Entry(
        "generate",
        "generate:generate_command",
        "Generate aligned text. One prompt streams its segments, several show progress.",
    ),
    Entry(
        "show",
        "show:show_command",
        "Show the answers of a trace: kept segments, rejected drafts, rewards, costs.",
    ),
    Entry("view", "view:view_command", "Open the page of a trace in a browser."),
    Entry(
        "serve",
        "serve:serve_command",
        "Serve models behind OpenAI's API. Clients get accepted segments only.",
    ),
    Entry(
        "doctor",
        "doctor:doctor_command",
        "Show versions, devices, both models and how they run. Loads both models.",
    ),
    Entry(
        "calibrate",
        "calibrate:calibrate_command",
        "Find thresholds for a language model and a reward model.",
    ),
    Entry(
        "train-guide",
        "train_guide:train_guide_command",
        "Fit a guide to a language model. Resumes where it was interrupted.",
    ),
    Entry(
        "compare",
        "compare:compare_command",
        "Compare ways to generate on the same prompts, and write a report.",
    ),
    Entry(
        "sweep",
        "compare:sweep_command",
        "Compare STARS under every combination of some settings.",
    ),
    Entry(
        "report",
        "compare:report_command",
        "Write the report of a finished evaluation again, from its stored answers.",
    ),
)

ERROR, REFUSED = 2, 3

# Typer's frames wrap messages at 80 columns, so use them only on a terminal.
_MARKUP: Any = "rich" if sys.stderr.isatty() else None


class _Commands(TyperGroup):
    """The commands. typer quotes invalid arguments in its errors, so they are made visible."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for entry in COMMANDS:
            self.add_command(LazyCommand(entry, _MARKUP))

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        with _readable_usage_errors():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _readable_usage_errors():
            return super().invoke(ctx)


@contextmanager
def _readable_usage_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        usage: Any = error
        if hasattr(error, "format_message"):  # of click, or of typer's own copy of click
            if usage.message.startswith("Got unexpected extra argument"):
                usage.message += ". Hint: put an argument of several words in quotes"
            if sys.stderr.isatty():
                usage.message = visible(usage.message)
        raise


app = typer.Typer(
    cls=_Commands,
    help="Align a language model's text while it is generated.",
    epilog="`stars COMMAND --help` lists the options of a command.",
    no_args_is_help=True,
    context_settings=HELP_NAMES,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=_MARKUP,
)


def main() -> None:
    """Run the command line.

    The status is 0; 1 if the reader of a pipe has closed it; 2 after an error; 3 if an answer was
    refused, because no draft of a segment was accepted. For Ctrl-C see `run_interruptible`.
    """
    # Small weights load in a second, and progress bars of transformers would hide the output.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    messages.install()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not support every character
        sys.stdout.reconfigure(errors="replace")
    if not sys.flags.safe_path:
        # Rewards named 'module:name' may be in this directory. It comes last, so that its files
        # cannot shadow packages.
        sys.path.append("")
    try:
        app()
    except OSError as error:
        _drop_unwritable()
        if is_broken_pipe(error):
            sys.exit(1)
        messages.say_error(error)
        sys.exit(ERROR)
    except Exception as error:  # noqa: BLE001 - others than those of the package are raised again
        sys.exit(_status_of(error))


def _drop_unwritable() -> None:
    """Drop what standard output cannot take; Python would try again at exit, with status 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _status_of(error: Exception) -> int:
    """Print an error of the package and return the status; raise all others."""
    from stars_engine.errors import AlignmentError, StarsError

    if not isinstance(error, StarsError):
        raise error
    messages.say_error(error)
    return REFUSED if isinstance(error, AlignmentError) else ERROR


@app.callback(invoke_without_command=True)
def _root(
    *,
    show_version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.")
    ] = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    messages.set_verbosity(verbose, quiet=quiet)
    if show_version:
        from importlib.metadata import version

        write(f"stars-engine {version('stars-engine')}")
        raise typer.Exit

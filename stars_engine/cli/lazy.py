"""Commands that are imported when they run, so that `stars --help` is quick."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer
from typer.core import TyperCommand

from stars_engine.cli.messages import messages

HELP_NAMES = {"help_option_names": ["-h", "--help"]}

VerboseOption = Annotated[
    int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Say more; -vv: all.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only results and errors: no progress, no warnings.")
]


class Entry(NamedTuple):
    """One command: its name, where its function is, and the first line of its help."""

    name: str
    home: str
    summary: str


class LazyCommand(TyperCommand):
    """Stands for a command in the list of commands, and becomes it when it is used.

    Args:
        entry: The command.
        markup: How typer marks up help; None for plain text.
    """

    def __init__(self, entry: Entry, markup: Any) -> None:
        super().__init__(entry.name, callback=None, help=entry.summary, context_settings=HELP_NAMES)
        self._entry, self._markup = entry, markup

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Return the context of the real command."""
        command = self.real()
        messages.option_names = {
            param.name: max(param.opts, key=len)
            for param in command.params
            if param.name and getattr(param, "opts", None) and param.opts[0].startswith("-")
        }
        return command.make_context(info_name, args, parent, **extra)

    def real(self) -> Any:
        """Import the command."""
        module, _, name = self._entry.home.partition(":")
        function = getattr(import_module(f"stars_engine.cli.{module}"), name)
        app = typer.Typer(add_completion=False, rich_markup_mode=self._markup)
        app.command(self._entry.name, context_settings=HELP_NAMES)(_with_verbosity(function))
        return typer.main.get_command(app)


def _with_verbosity(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options --verbose and --quiet to a command."""

    @functools.wraps(function)
    def command(*args: Any, verbose: int, quiet: bool, **options: Any) -> None:
        messages.set_verbosity(verbose, quiet=quiet)
        function(*args, **options)

    hints = get_type_hints(function, include_extras=True)
    own = inspect.signature(function).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        *(parameter.replace(annotation=hints[parameter.name]) for parameter in own),
        inspect.Parameter("verbose", keyword, default=0, annotation=VerboseOption),
        inspect.Parameter("quiet", keyword, default=False, annotation=QuietOption),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command

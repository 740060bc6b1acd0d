"""Messages and errors on standard error."""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Mapping
from contextlib import suppress

from rich.console import Console
from rich.text import Text

from stars_engine.cli.hints import in_options
from stars_engine.cli.output import visible

_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}  # more: DEBUG


class Messages(Console):
    """Standard error. Lines are wrapped only on a terminal, because programs read other output.

    Attributes:
        option_names: The options of the running command, by the name of their parameter.
        phrases: What to say instead of something that errors say.
    """

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)
        self.option_names: Mapping[str, str] = {}
        self.phrases: dict[str, str] = {}
        self._verbosity = 0

    @property
    def shows_progress(self) -> bool:
        """Whether a progress bar can be shown."""
        return self.is_terminal and self._verbosity >= 0

    def install(self) -> None:
        """Print warnings, and log records that have no other handler."""
        warnings.showwarning = self.say_warning
        logging.lastResort = LogMessages(logging.WARNING)

    def set_verbosity(self, verbose: int, *, quiet: bool) -> None:
        """Set how much is said; what was set before stays if nothing is given."""
        if quiet or verbose:
            self._verbosity = -1 if quiet else verbose
            level = _LEVELS.get(self._verbosity, logging.DEBUG)
            logging.lastResort = LogMessages(level)
            logging.getLogger("stars_engine").setLevel(level)

    def say(self, text: str, *, style: str = "") -> None:
        """Print a message verbatim, without markup, unless the command is quiet."""
        if self._verbosity >= 0:
            self.write(text, style=style)

    def write(self, text: str, *, style: str = "") -> None:
        """Print a message, also if the command is quiet.

        Messages quote prompts and answers, so a terminal gets control characters as escapes.
        """
        if self.is_terminal:
            self.print(Text(visible(text)), style=style)
        else:
            self.file.write(f"{text}\n")
            self.file.flush()

    def say_error(self, error: Exception) -> None:
        """Print the message of an error, and its notes. Fields are named as options are."""
        self.print("error:", style="bold red", end=" ")
        message = _explain(error) if isinstance(error, OSError) else str(error)
        self.write(self._translated(message))
        for note in getattr(error, "__notes__", []):
            self.write(note)

    def say_record(self, text: str) -> None:
        """Print a log record."""
        self.write(self._translated(text))

    def _translated(self, text: str) -> str:
        for phrase, said in self.phrases.items():
            text = text.replace(phrase, said)
        return in_options(text, self.option_names)

    def say_warning(
        self, message: Warning | str, category: type[Warning], *_: object, **__: object
    ) -> None:
        """Replace `warnings.showwarning`; show only the package's own warnings."""
        from stars_engine.errors import StarsWarning

        if issubclass(category, StarsWarning) and self._verbosity >= 0:
            self.print("warning:", style="bold yellow", end=" ")
            self.write(self._translated(str(message)))


class LogMessages(logging.Handler):
    """Prints log records that have no other handler."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record, and its traceback if it has one."""
        with suppress(ValueError):  # a closed standard error, at the end of the process
            messages.say_record(self.format(record))


def is_broken_pipe(error: OSError) -> bool:
    """Whether the reader of the output has exited, as `head` does; this is not a failure."""
    return error.errno in (errno.EPIPE, errno.ESHUTDOWN)


def _explain(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    return f"{error.filename}: {error.strerror}. Hint: check the path and its permissions"


messages = Messages()

"""Messages and errors on standard error."""

from __future__ import annotations

import errno
import logging

from rich.console import Console
from rich.text import Text

from stars_engine.cli.output import visible
from stars_engine.errors import StarsError, StarsWarning


class Messages(Console):
    """Standard error. Lines are wrapped only on a terminal, because programs read other output."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    def say(self, text: str, *, style: str = "") -> None:
        """Print a message verbatim, without markup.

        Messages quote prompts and answers, so a terminal gets control characters as escapes.
        """
        if self.is_terminal:
            self.print(Text(visible(text)), style=style)
        else:
            self.file.write(f"{text}\n")
            self.file.flush()

    def say_error(self, error: Exception) -> None:
        """Print the message of an error, and its notes."""
        self.print("error:", style="bold red", end=" ")
        self.say(_explain(error) if isinstance(error, OSError) else str(error))
        for note in getattr(error, "__notes__", []):
            self.say(note)

    def say_warning(
        self, message: Warning | str, category: type[Warning], *_: object, **__: object
    ) -> None:
        """Replace `warnings.showwarning`; show only the package's own warnings."""
        if issubclass(category, StarsWarning):
            self.print("warning:", style="bold yellow", end=" ")
            self.say(str(message))


class LogMessages(logging.Handler):
    """Prints log records that have no other handler."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a record, and its traceback if it has one."""
        messages.say(self.format(record))


def is_broken_pipe(error: OSError) -> bool:
    """Whether the reader of the output has exited, as `head` does; this is not a failure."""
    return error.errno in (errno.EPIPE, errno.ESHUTDOWN)


def _explain(error: OSError) -> str:
    if isinstance(error, StarsError) or error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    return f"{error.filename}: {error.strerror}. Hint: check the path and its permissions"


messages = Messages()

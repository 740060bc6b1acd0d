"""What goes to standard error: messages, and how errors end the command."""

from __future__ import annotations

import errno
import logging

from rich.console import Console
from rich.text import Text

from stars_engine.cli.output import visible
from stars_engine.errors import StarsError, StarsWarning


class Messages(Console):
    """Standard error. Lines are wrapped for a terminal only: elsewhere programs read them."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, markup=False, emoji=False)

    def say(self, text: str, *, style: str = "") -> None:
        """Print one message as it is, without markup.

        A terminal gets control characters as visible escapes: messages quote prompts and answers.
        """
        if self.is_terminal:
            self.print(Text(visible(text)), style=style)
        else:
            self.file.write(f"{text}\n")
            self.file.flush()

    def say_error(self, error: Exception) -> None:
        """Print an error's message and the notes that were added to it."""
        self.print("error:", style="bold red", end=" ")
        self.say(_explain(error) if isinstance(error, OSError) else str(error))
        for note in getattr(error, "__notes__", []):
            self.say(note)

    def say_warning(
        self, message: Warning | str, category: type[Warning], *_: object, **__: object
    ) -> None:
        """Stand in for `warnings.showwarning`: our warnings only, in our form."""
        if issubclass(category, StarsWarning):
            self.print("warning:", style="bold yellow", end=" ")
            self.say(str(message))


class LogMessages(logging.Handler):
    """Log records that nobody else handles, in our form."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record's message, and the traceback where it has one."""
        messages.say(self.format(record))


def is_broken_pipe(error: OSError) -> bool:
    """True if whoever read our output has gone, as `head` does: no mistake of anybody's."""
    return error.errno in (errno.EPIPE, errno.ESHUTDOWN)


def _explain(error: OSError) -> str:
    if isinstance(error, StarsError) or error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    return f"{error.filename}: {error.strerror}. Hint: check the path and its permissions"


messages = Messages()

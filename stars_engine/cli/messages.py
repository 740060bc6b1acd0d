"""What goes to standard error: messages, and how errors end the command."""

from __future__ import annotations

import errno

from rich.console import Console

from stars_engine.errors import StarsError, StarsWarning


class Messages(Console):
    """Standard error. Lines are wrapped for a terminal only: elsewhere programs read them."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    def say(self, text: str, *, style: str = "") -> None:
        """Print one message as it is, without markup."""
        self.print(text, style=style, markup=False, soft_wrap=not self.is_terminal)

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


def is_broken_pipe(error: OSError) -> bool:
    """True if whoever read our output has gone, as `head` does: no mistake of anybody's."""
    return error.errno in (errno.EPIPE, errno.ESHUTDOWN)


def _explain(error: OSError) -> str:
    if isinstance(error, StarsError) or error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    return f"{error.filename}: {error.strerror}. Cure: check the path and its permissions"


messages = Messages()

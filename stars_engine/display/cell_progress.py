"""Progress below a notebook cell: one line that is updated in place and disappears at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from typing import Any, NamedTuple

DELAY_S = 1.0  # quick calls show nothing


class Stage(NamedTuple):
    """What a call waits for.

    Attributes:
        text: A few words.
        done: Number of parts that are done.
        total: Number of parts; 0 if it is unknown.
    """

    text: str
    done: int = 0
    total: int = 0


@contextmanager
def cell_progress(stage: Callable[[], Stage]) -> Iterator[Callable[[], None] | None]:
    """Show progress if this process is the kernel of a notebook.

    Args:
        stage: Returns what is being waited for now.

    Yields:
        A function to call several times a second while waiting; None outside of notebooks.
    """
    if not in_notebook():
        yield None
        return
    line = _Line(stage)
    try:
        yield line.show
    finally:
        line.remove()


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return any(each.__name__ == "ZMQInteractiveShell" for each in type(shell).__mro__)


class _Line:
    def __init__(self, stage: Callable[[], Stage]) -> None:
        self._stage, self._since_s = stage, time.monotonic()
        self._handle: Any = None  # of the displayed HTML
        self._shown = ""

    def show(self) -> None:
        passed_s = time.monotonic() - self._since_s
        if passed_s < DELAY_S:
            return
        text, done, total = self._stage()
        bar = f"<progress value='{done}' max='{total}'></progress> " if total else ""
        count = f" {done} of {total}" if total else ""
        self._write(f"{bar}{escape(text)}{count} ({passed_s:.0f} s)")

    def remove(self) -> None:
        if self._handle is not None:
            self._write("")

    def _write(self, html: str) -> None:
        if html == self._shown:
            return
        ipython = import_module("IPython.display")
        self._shown, shown = html, ipython.HTML(html)
        if self._handle is None:
            self._handle = ipython.display(shown, display_id=True)
        else:
            self._handle.update(shown)

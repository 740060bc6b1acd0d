"""Show that a command is at work: bars and a spinner on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Event, Thread
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
)
from rich.status import Status
from rich.text import Text

from stars_engine.cli.messages import messages
from stars_engine.cli.output import visible

EVERY_S = 10.0  # between two lines where there is no terminal


class Wait:
    """Says what is being waited for, as a context.

    A terminal shows a spinner with the time that has passed. Elsewhere, a line is printed at once,
    another for each new text, and one every ten seconds.

    Args:
        text: What is being waited for.
    """

    def __init__(self, text: str) -> None:
        self._text, self._since_s = text, time.monotonic()
        self._ended = Event()
        self._status = Status("", console=messages, speed=1.0)
        self._thread = Thread(target=self._repeat, name="stars-wait", daemon=True)

    def __enter__(self) -> Self:
        if messages.shows_progress:
            self._status.start()
            self._show()
        else:
            messages.say(self._text)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def update(self, text: str, *, aloud: bool = True) -> None:
        """Change the text.

        Args:
            text: What is now being waited for.
            aloud: Whether the command now waits for something else: the time starts anew, and a
                line is printed at once if there is no terminal.
        """
        if text == self._text or self._ended.is_set():
            return
        self._text = text
        if aloud:
            self._since_s = time.monotonic()
        if messages.shows_progress:
            self._show()
        elif aloud:
            messages.say(text)

    def end(self) -> None:
        """Remove the spinner; what is printed from now on starts on a clean line."""
        self._ended.set()
        self._status.stop()

    def _repeat(self) -> None:
        on_terminal = messages.shows_progress
        while not self._ended.wait(1.0 if on_terminal else EVERY_S):
            if on_terminal:
                self._show()
            else:
                messages.say(f"{self._text} ({self._passed()})")

    def _show(self) -> None:
        self._status.update(Text(visible(f"{self._text} ({self._passed()})")))

    def _passed(self) -> str:
        return in_words(time.monotonic() - self._since_s)


class TimeLeft:
    """Estimates the time left from the share that is done."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()

    def said(self, done: int, total: int) -> str:
        """Return ", about 40 s left", or nothing while it is unknown.

        Args:
            done: Number of parts that are done since this object was made.
            total: Number of parts.
        """
        if not done or done >= total:
            return ""
        passed_s = time.monotonic() - self._since_s
        return f", about {in_words(passed_s / done * (total - done))} left"


def in_words(seconds: float) -> str:
    """Return a duration as text, such as "40 s", "3 min 20 s" or "2 h 5 min"."""
    minutes, rest_s = divmod(round(seconds), 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min {rest_s} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def bars(time: ProgressColumn) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each thing that is done; yield what takes its name, done and total.

    Where there is no terminal for bars, a line is printed for each thing, and one every ten
    seconds.

    Args:
        time: The last column: the time that has passed, or that is left.
    """
    if not messages.shows_progress:
        with _lines() as advance_lines:
            yield advance_lines
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), time)
    with Progress(*columns, console=messages) as progress:
        tasks: dict[str, TaskID] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield advance


@contextmanager
def _lines() -> Iterator[Callable[[str, int, int], None]]:
    with ExitStack() as stack:
        waits: list[Wait] = []
        names: set[str] = set()

        def advance(name: str, done: int, total: int) -> None:
            is_new = name not in names
            names.add(name)
            if is_new and done >= total:
                return  # nothing is left to do
            text = f"{name}: {total - done} to do" if is_new else f"{name}: {done} of {total}"
            if waits:
                waits[0].update(text, aloud=is_new)
            else:
                waits.append(stack.enter_context(Wait(text)))

        yield advance

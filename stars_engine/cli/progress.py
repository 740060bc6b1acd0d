"""Progress bars of commands that do several things, one bar for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
)

from stars_engine.cli.messages import messages


@contextmanager
def bars(
    time: ProgressColumn, *, announce: bool = False
) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each thing that is done; yield what takes its name, done and total.

    Args:
        time: The last column: the time that has passed, or that is left.
        announce: Whether to print a line for each thing where there is no terminal for bars.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), time)
    with Progress(*columns, console=messages, disable=not messages.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
                if announce and not messages.is_terminal and done < total:
                    messages.say(f"{name}: {total - done} to do")
            progress.update(tasks[name], completed=done, total=total)

        yield advance

"""`stars show`: the answers of a trace, on the terminal or as a page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from stars_engine.cli.messages import messages
from stars_engine.cli.output import visible
from stars_engine.display.results import (
    facts_of,
    margin_of,
    prompt_of,
    rejected_of,
    rejection_of,
    results_page,
    scale_of,
    verdict_of,
)
from stars_engine.files.config_files import check_suffix
from stars_engine.files.disk import write_file
from stars_engine.trace import read_jsonl
from stars_engine.types import Attempt, Segment, StarsResult


def show_command(
    trace: Annotated[Path, typer.Argument(help="What `stars generate` wrote: --trace or --json.")],
    *,
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained page to this file instead.")
    ] = None,
    first: Annotated[
        int | None, typer.Option("--first", "-n", min=1, help="Only the first answers.")
    ] = None,
    attempts: Annotated[
        bool, typer.Option("--attempts", "-a", help="Also list the rejected drafts.")
    ] = False,
) -> None:
    """Show the answers of a trace: kept segments, rejected drafts, rewards, costs.

    The further the reward of a segment is above its threshold, the greener its background; it is
    amber if the reward is below, and red if the segment was forced. The texts of rejected drafts
    are shown if the trace was written with --keep-rejected-text.
    """
    if html is not None:
        check_suffix(html, "page", (".html", ".htm"))
    results = list(islice(read_jsonl(trace), first))
    if html is not None:
        write_file(html, results_page(results, trace.name), "page")
        count = "1 answer" if len(results) == 1 else f"{len(results)} answers"
        messages.say(f"{count} written to {html}")
        return
    console = Console(highlight=False)
    for result in results:
        _print(console, result, attempts=attempts)


def _print(console: Console, result: StarsResult, *, attempts: bool) -> None:
    text = Text()
    if result.id is not None:
        text.append(f"{_shown(str(result.id))}  ", style="bold")
    if isinstance(result.prompt, str):
        text.append(_shown(prompt_of(result)), style="dim")
    elif result.prompt is not None:
        text.append(f"{_shown(result.prompt.messages[-1].content)}\n", style="dim")
    scale = scale_of(result)
    for segment in result.segments:
        margin = margin_of(segment)
        text.append(_shown(segment.text), style=_style(segment, margin, scale))
        text.append("|", style="dim")
    console.print(text, soft_wrap=True)
    if attempts:
        for row in _attempts(result):
            console.print(row, soft_wrap=True)
    console.print(Text(facts_of(result), style="dim"), soft_wrap=True)
    console.print()


def _style(segment: Segment, margin: float | None, scale: float) -> str:
    if segment.forced:
        return "on rgb(110,20,20)"
    if margin is None:
        return ""
    if margin < 0:
        return "on rgb(90,65,10)"
    share = min(1.0, margin / scale)
    return f"on rgb(0,{40 + round(60 * share)},{20 + round(20 * share)})"


def _attempts(result: StarsResult) -> Iterator[Text]:
    """Yield a line for each rejected draft and each kept segment."""
    for index, segment in enumerate(result.segments):
        yield from (_rejected(f"{index:>3}", draft) for draft in rejected_of(segment))
        text = repr(segment.text)
        yield Text(f"{index:>3}  {_shown(text)}  {verdict_of(segment)}")
    yield from (_rejected("  -", draft) for draft in result.abandoned_attempts)
    if result.abandoned_attempts:
        yield Text("  -  nothing kept")


def _rejected(place: str, draft: Attempt) -> Text:
    row = Text(f"{place}  ")
    own = "a draft" if draft.text is None else repr(draft.text)
    row.append(_shown(own), style="strike dim")
    row.append(f"  {rejection_of(draft)}")
    return row


def _shown(text: str) -> str:
    return visible(text) if sys.stdout.isatty() else text

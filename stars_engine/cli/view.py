"""`stars view`: the page of a trace in a browser."""

from __future__ import annotations

import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from stars_engine.cli.messages import messages
from stars_engine.display.results import results_page
from stars_engine.files.disk import write_file
from stars_engine.trace import read_jsonl


def view_command(
    trace: Annotated[Path, typer.Argument(help="What `stars generate` wrote: --trace or --json.")],
) -> None:
    """Open the page of a trace in a browser.

    `stars show --html` writes the page to a file of your choice.
    """
    page = Path(tempfile.mkdtemp(prefix="stars-view-")) / f"{trace.stem}.html"
    write_file(page, results_page(read_jsonl(trace), trace.name), "page")
    url = page.absolute().as_uri()
    if not webbrowser.open(url):
        messages.say(f"no browser was found; open {url}")

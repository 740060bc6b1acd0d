"""Find the tool calls in an unfinished answer, as far as they are written."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import NamedTuple

from stars_engine.chat.formats import ToolFormat, unmarked
from stars_engine.chat.tool_calls import HEAD, start_of_calls

_DECODER = json.JSONDecoder()


class WrittenCall(NamedTuple):
    """A call that has begun: the name of its tool, and its arguments as far as they are written."""

    name: str
    arguments: str


def written_calls(text: str, form: ToolFormat, names: Collection[str]) -> list[WrittenCall]:
    """Return the calls of an unfinished answer whose names are complete.

    What is returned does not change while the answer grows, except that arguments get longer. It
    ends at the first call in another form, or of an unknown tool.

    Args:
        text: The marked answer.
        form: The format of calls, in the form of `marked_text`.
        names: The tools that may be called.
    """
    head = HEAD
    if form.infix:
        head = re.compile(rf"{re.escape(form.marker)}\s*([^\s{{]+?){re.escape(form.infix)}\s*")
    found: list[WrittenCall] = []
    place = start_of_calls(text, form)
    while match := head.search(text, place):
        name = match[1] if form.infix else json.loads(match[1])
        begin = match.end()
        if name not in names or text[begin : begin + 1] not in ("", "{"):
            break
        try:
            _, place = _DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError):
            found.append(WrittenCall(name, unmarked(text[begin:])))
            break
        found.append(WrittenCall(name, unmarked(text[begin:place])))
    return found

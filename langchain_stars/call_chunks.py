"""Stream tool calls as chunks while they are written, and correct them at the end.

LangChain merges the chunks of a call, and reads the arguments as far as they are JSON. So a call
that turns out to be invalid must end in text that is not JSON.
"""

from __future__ import annotations

import json

from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from langchain_core.utils.json import parse_partial_json

from stars_engine import Message, SegmentEvent

_ENDS = ("]", "}", '"]', '"}')  # one of them closes what is not open


class CallChunks:
    """Turns the events of one answer into chunks of tool calls.

    Args:
        whole: Whether each call is one chunk. The content blocks of LangChain's output version v1
            do not merge the chunks of a call.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole
        self._names: list[str] = []
        self._arguments: list[str] = []

    def of(self, event: SegmentEvent) -> list[ToolCallChunk]:
        """Return what an event adds to the calls; the last one completes or invalidates them."""
        chunks = []
        for delta in () if self._whole else event.tool_calls:
            if delta.name is not None:
                self._names.append(delta.name)
                self._arguments.append("")
            self._arguments[delta.index] += delta.arguments
            chunks.append(
                tool_call_chunk(
                    name=delta.name, args=delta.arguments, id=delta.id, index=delta.index
                )
            )
        if event.result is not None and event.result.message is not None:
            chunks += self._ends(event.result.message)
        return chunks

    def _ends(self, message: Message) -> list[ToolCallChunk]:
        """Return the ends of invalid calls, and calls that were not streamed."""
        valid, invalid = list(message.tool_calls), list(message.invalid_tool_calls)
        chunks = []
        for index, (name, written) in enumerate(zip(self._names, self._arguments, strict=True)):
            value = _parsed(written)
            call = next((c for c in valid if (c.name, c.arguments) == (name, value)), None)
            if call is not None:
                valid.remove(call)
                continue
            invalid = invalid[1:]
            chunks.append(tool_call_chunk(name=None, args=_end(written), id=None, index=index))
        index = len(self._names)
        for call in valid:
            args = json.dumps(call.arguments, ensure_ascii=False)
            chunks.append(tool_call_chunk(name=call.name, args=args, id=call.id, index=index))
            index += 1
        for broken in invalid:
            args = _not_parsed(broken.text)
            chunks.append(tool_call_chunk(name=broken.name, args=args, id=None, index=index))
            index += 1
        return chunks


def _parsed(written: str) -> object:
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return None


def _end(written: str) -> str:
    """Return text after which LangChain does not read the arguments as valid."""
    return next(end for end in _ENDS if not _is_read(written + end))


def _not_parsed(text: str) -> str:
    """Encode the text of an invalid call so that LangChain does not parse it as a valid one."""
    return json.dumps(text) if _is_read(text) else text


def _is_read(text: str) -> bool:
    try:
        return isinstance(parse_partial_json(text), dict)
    except (ValueError, RecursionError):
        return False

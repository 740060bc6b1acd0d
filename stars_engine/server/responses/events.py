"""The events of a response, in the order of OpenAI's API; whole responses are built from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from stars_engine.messages import ToolCall
from stars_engine.server.accounts import refusal_of, segment_of
from stars_engine.server.calls import EngineRequest
from stars_engine.server.responses.frame import closed, dumped, is_incomplete
from stars_engine.server.responses.items import new_item, refusal_part, text_part
from stars_engine.types import SegmentEvent, StarsResult

Event = dict[str, Any]


class ResponseEvents:
    """Turns what the engine emits into the events of one response.

    An item is opened when its first text is accepted, and closed before the next one.

    Args:
        call: The call.
        frame: The response before its answer.
    """

    def __init__(self, call: EngineRequest, frame: dict[str, Any]) -> None:
        self._call, self._frame = call, frame
        self._number = -1
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the item that is being written
        self.response = frame

    def begin(self) -> Iterator[Event]:
        """Yield the events before the answer."""
        for name in ("created", "in_progress"):
            yield self._event(f"response.{name}", response=dumped(self._frame))

    def add(self, event: SegmentEvent) -> Iterator[Event]:
        """Yield what an event of the engine adds."""
        event = self._call.names.event(event)
        if event.reasoning:
            yield from self._write("reasoning", event.reasoning)
        about = {}
        if self._call.options.segments and event.segment is not None:
            about = {"stars": {"segment": segment_of(event.segment)}}
        if event.content:
            yield from self._write("message", event.content, **about)
        if event.result is not None:
            yield from self._end(event.result)

    def fail(self, error: dict[str, Any]) -> Iterator[Event]:
        """Yield the end of a response that failed."""
        about = {"code": "server_error", "message": error["message"]}
        failed = {**self._frame, "status": "failed", "error": about, "output": self._items}
        yield self._event("error", **{k: error[k] for k in ("code", "message", "param")})
        yield self._event("response.failed", response=dumped(failed))

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **fields}

    # --- items ---

    def _write(self, kind: str, text: str, **about: Any) -> Iterator[Event]:
        """Add text to the open item, or to a new one."""
        if self._open is None or self._open["type"] != kind:
            yield from self._close("completed")
            fields: dict[str, Any] = (
                {"summary": []} if kind == "reasoning" else {"role": "assistant"}
            )
            item = new_item(kind, status="in_progress", content=[], **fields)
            yield from self._add_item(item)
            part = {"type": "reasoning_text", "text": ""} if kind == "reasoning" else text_part("")
            yield from self._add_part(item, part)
        assert self._open is not None
        self._open["content"][-1]["text"] += text
        name = "reasoning_text" if kind == "reasoning" else "output_text"
        if kind == "message":
            about = {"logprobs": [], **about}
        yield self._event(f"response.{name}.delta", **self._place(), delta=text, **about)

    def _add_item(self, item: dict[str, Any]) -> Iterator[Event]:
        self._open = item
        self._items.append(item)
        index = len(self._items) - 1
        shown = json.loads(json.dumps(item))
        yield self._event("response.output_item.added", output_index=index, item=shown)

    def _add_part(self, item: dict[str, Any], part: dict[str, Any]) -> Iterator[Event]:
        item["content"].append(part)
        yield self._event("response.content_part.added", **self._place(), part=dict(part))

    def _place(self) -> dict[str, Any]:
        item = self._items[-1]
        index = max(0, len(item.get("content", ())) - 1)
        return {
            "item_id": item["id"],
            "output_index": len(self._items) - 1,
            "content_index": index,
        }

    def _end_part(self) -> Iterator[Event]:
        """Yield the end of the last part of the open item."""
        assert self._open is not None
        part = self._open["content"][-1]
        name = part["type"]
        key = "refusal" if name == "refusal" else "text"
        more: dict[str, Any] = {"logprobs": []} if name == "output_text" else {}
        yield self._event(f"response.{name}.done", **self._place(), **{key: part[key]}, **more)
        yield self._event("response.content_part.done", **self._place(), part=dict(part))

    def _close(self, status: str) -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        if item.get("content") and item["content"][-1]["type"] != "refusal":
            yield from self._end_part()
        item["status"] = status
        self._open = None
        index = len(self._items) - 1
        shown = json.loads(json.dumps(item))
        yield self._event("response.output_item.done", output_index=index, item=shown)

    # --- the end ---

    def _end(self, result: StarsResult) -> Iterator[Event]:
        assert result.message is not None, "answers to conversations have a message"
        incomplete, refusal = is_incomplete(result), refusal_of(result)
        calls = result.message.tool_calls
        has_message = any(item["type"] == "message" for item in self._items)
        if refusal is not None:
            yield from self._refuse(refusal)
        elif not has_message and not calls:
            yield from self._write("message", "")
        yield from self._close("incomplete" if incomplete else "completed")
        for tool_call in calls:
            yield from self._call_tool(tool_call)
        self.response = dumped(closed(self._frame, result, self._items, self._call))
        name = "incomplete" if incomplete else "completed"
        yield self._event(f"response.{name}", response=self.response)

    def _refuse(self, refusal: str) -> Iterator[Event]:
        if self._open is None or self._open["type"] != "message":
            yield from self._close("completed")
            item = new_item("message", status="in_progress", content=[], role="assistant")
            yield from self._add_item(item)
        else:
            yield from self._end_part()
        assert self._open is not None
        yield from self._add_part(self._open, refusal_part(""))
        self._open["content"][-1]["refusal"] = refusal
        yield self._event("response.refusal.delta", **self._place(), delta=refusal)
        yield from self._end_part()

    def _call_tool(self, tool_call: ToolCall) -> Iterator[Event]:
        arguments = json.dumps(tool_call.arguments, ensure_ascii=False)
        about = {"call_id": tool_call.id, "name": tool_call.name}
        item = new_item("function_call", status="in_progress", arguments="", **about)
        yield from self._add_item(item)
        item["arguments"] = arguments
        place = {"item_id": item["id"], "output_index": len(self._items) - 1}
        name = "response.function_call_arguments"
        yield self._event(f"{name}.delta", **place, delta=arguments)
        yield self._event(f"{name}.done", **place, arguments=arguments, name=tool_call.name)
        yield from self._close("completed")

"""Conversations of `ChatStars`: messages and tools for the engine, and answers for LangChain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_stars.call_chunks import CallChunks
from langchain_stars.messages import read_messages
from langchain_stars.outputs import Reporting, chat_chunk_of, chat_generation_of, llm_output_of
from langchain_stars.tools import read_tools
from stars_engine import Chat, SegmentEvent, StarsResult
from stars_engine.integrations import ToolNames, lenient, read_tool_choice, warn_of_cut_calls
from stars_engine.schema_formats.parts import rooted
from stars_engine.schema_formats.wrappings import NamedSchema


def tool_of(found: NamedSchema, name: str) -> dict[str, Any]:
    """Return a tool whose arguments are the requested object.

    Raises:
        ValueError: The schema is not that of an object.
    """
    kind = rooted(found.schema or {}).get("type", "object")
    if kind != "object":
        raise ValueError(
            "method='function_calling' needs the schema of an object, but the type of this schema "
            f"is {kind!r}. Hint: use method='json_schema'"
        )
    return replace(found, name=name).as_tool()


def chat_of(
    messages: Sequence[BaseMessage], tools: Sequence[Any], given: Mapping[str, Any]
) -> tuple[Chat, ToolNames]:
    """Return a conversation for the engine, and the names of its tools."""
    formatted = read_tools(tools)
    given_names = [tool["function"]["name"] for tool in formatted]
    names = ToolNames(given_names)
    written = [lenient(names.tool(tool)) for tool in formatted]
    if "tool_choice" in given:
        choice = read_tool_choice(given["tool_choice"], given_names)
        given = {**given, "tool_choice": names.choice(choice)}
    return Chat(read_messages(messages, names), tools=written, **given), names


class Chunks:
    """Turns the events of one answer into chunks, under the caller's names of tools.

    Args:
        names: The names of tools.
        reporting: What the metadata depends on.
        whole_calls: Whether each tool call is one chunk.
    """

    def __init__(self, names: ToolNames, reporting: Reporting, *, whole_calls: bool) -> None:
        self._names, self._reporting = names, reporting
        self._calls = CallChunks(whole=whole_calls)

    def of(self, event: SegmentEvent) -> ChatGenerationChunk:
        """Return an event as a chunk of the message."""
        if event.result is not None:
            warn_of_cut_calls(event.result)
        event = self._names.event(event)
        return chat_chunk_of(event, self._reporting, self._calls.of(event))


def chat_result(results: list[StarsResult], reporting: Reporting, names: ToolNames) -> ChatResult:
    """Return all answers to one conversation, under the caller's names of tools."""
    said = [names.result(warn_of_cut_calls(result)) for result in results]
    return ChatResult(
        generations=[chat_generation_of(result, reporting) for result in said],
        llm_output=llm_output_of(results, reporting.settings),
    )

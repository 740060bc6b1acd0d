"""Tool calls in streams: chunks while they are written, and partial objects."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

import llamaindex_stars
from langchain_stars import ChatStars
from stars_engine.chat.call_deltas import written_calls
from stars_engine.chat.formats import GENERIC, HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, ToolFormat
from tests.support.scripted import scripted

ARGUMENTS = {"text": 'a longer "text" with } in it', "n": 3}
FORMATS = {f.name: f for f in (HERMES, MISTRAL, MISTRAL_NAMED, LLAMA, GENERIC)}


@tool
def note(text: str, n: int = 1) -> str:
    """Keeps a note."""
    return text


class Note(BaseModel):
    """A note."""

    text: str
    n: int


def judge(prompt: str, completion: str) -> float:
    return 1.0


def settings(answer: str, **given: Any) -> dict[str, Any]:
    fields = {"reward": judge, "schedule": {"kind": "none"}, "segment_len": 8} | given
    return {"model": scripted(lambda _: answer), **fields}


def calling(*names: str) -> str:
    return HERMES.write([(name, ARGUMENTS) for name in names])


def whole(chunks: Any) -> AIMessageChunk:
    total = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    assert isinstance(total, AIMessageChunk)
    return total


@pytest.mark.slow
def test_langchain_streams_calls_while_they_are_written() -> None:
    chat = ChatStars(**settings(calling("note", "note"), seed=7)).bind_tools([note])
    chunks = list(chat.stream("Note it."))
    parts = [part for chunk in chunks for part in chunk.tool_call_chunks]
    assert len(parts) > 8
    for index in (0, 1):  # clients need the id when a call begins
        ids = [part["id"] for part in parts if part["index"] == index]
        assert ids[0]
        assert not any(ids[1:])
    assert [part["name"] for part in parts if part["name"]] == ["note", "note"]
    first = [part["args"] or "" for part in parts if part["index"] == 0]
    assert len(list(filter(None, first))) > 3
    assert json.loads("".join(first)) == ARGUMENTS
    said, expected = whole(chunks), chat.invoke("Note it.")
    assert said.tool_calls == expected.tool_calls  # with their ids
    assert [call["args"] for call in said.tool_calls] == [ARGUMENTS] * 2
    assert said.content == ""


@pytest.mark.parametrize("max_tokens", range(40, 80, 8))
def test_a_cut_call_is_invalid_in_streams_too(max_tokens: int) -> None:
    answer = settings(calling("note"), max_tokens=max_tokens)
    with pytest.warns(UserWarning, match="cut off by max_tokens"):
        said = whole(ChatStars(**answer).bind_tools([note]).stream("Note it."))
    assert said.tool_calls == []
    [call] = said.invalid_tool_calls
    assert call["name"] in ("note", None)


def test_a_complete_call_that_does_not_conform_is_invalid_in_streams_too() -> None:
    items = {"type": "array", "uniqueItems": True, "items": {"type": "string", "maxLength": 9}}
    parameters = {"type": "object", "properties": {"tags": items}, "required": ["tags"]}
    listed = {"type": "function", "function": {"name": "tag", "parameters": parameters}}
    answer = HERMES.write([("tag", {"tags": ["a", "a"]})])
    said = whole(ChatStars(**settings(answer)).stream("Tag it.", tools=[listed]))
    assert (said.tool_calls, len(said.invalid_tool_calls)) == ([], 1)


@pytest.mark.parametrize("name", FORMATS)
def test_calls_of_every_format_grow(name: str) -> None:
    form: ToolFormat = FORMATS[name]
    calls = [("note", ARGUMENTS)] * (2 if form.between is not None else 1)
    text = form.write(calls)
    seen: list[tuple[str, str]] = []
    for size in range(len(text) + 1):
        now = written_calls(text[:size], form, {"note"})
        assert len(now) >= len(seen)
        for before, after in zip(seen, now, strict=False):
            assert after[0] == before[0]
            assert after[1].startswith(before[1])
        seen = [tuple(call) for call in now]
    assert [(called, json.loads(written)) for called, written in seen] == calls
    assert written_calls(text, form, {"other"}) == []
    assert written_calls("Just text.", form, {"note"}) == []


def test_llamaindex_yields_partial_objects() -> None:
    llm = llamaindex_stars.StarsLLM(**settings(HERMES.write([("Note", ARGUMENTS)])))
    made = list(llm.stream_structured_predict(Note, PromptTemplate("Note it.")))
    texts = [one.text or "" for one in made]
    assert len(set(texts)) > 3
    assert all(ARGUMENTS["text"].startswith(text) for text in texts)
    assert made[-1] == Note(**ARGUMENTS)

    async def collect() -> list[Any]:
        stream = await llm.astream_structured_predict(Note, PromptTemplate("Note it."))
        return [one async for one in stream]

    assert asyncio.run(collect())[-1] == Note(**ARGUMENTS)

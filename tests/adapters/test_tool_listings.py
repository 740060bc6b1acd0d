"""Tools as MCP servers list them: each is read where tools are expected, none where a schema is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel, ConfigDict, Field

from langchain_stars import ChatStars
from langchain_stars.tools import read_tools as read_langchain
from llamaindex_stars import StarsLLM
from llamaindex_stars.tools import read_tool_list as read_llamaindex
from stars_engine import Chat, ConfigError, JsonGrammar
from tests.support.mcp_tools import TOOLS as MCP_TOOLS
from tests.support.scripted import random_chat_model

TOOLS = MCP_TOOLS[:2]
FIRST, SECOND = TOOLS


class McpTool(BaseModel):
    """Like the class of MCP's SDK."""

    model_config = ConfigDict(extra="allow")

    name: str
    description: str | None = None
    inputSchema: dict[str, Any]  # noqa: N815 - its name
    meta: dict[str, Any] | None = Field(alias="_meta", default=None)


class McpListing(BaseModel):
    """Like the class of MCP's SDK."""

    meta: dict[str, Any] | None = Field(alias="_meta", default=None)
    nextCursor: str | None = None  # noqa: N815 - its name
    tools: list[McpTool]


LISTINGS: dict[str, Any] = {
    "a listing": {"tools": TOOLS},
    "a listing with a cursor": {"tools": TOOLS, "nextCursor": "abc", "_meta": {"a": 1}},
    "an answer": {"jsonrpc": "2.0", "id": 1, "result": {"tools": TOOLS, "nextCursor": None}},
    "a result": {"result": {"tools": TOOLS}},
    "declarations": {
        "functionDeclarations": [
            {"name": tool["name"], "parametersJsonSchema": tool["inputSchema"]} for tool in TOOLS
        ]
    },
    "an object": McpListing(tools=[McpTool(**tool) for tool in TOOLS]),
}
NAMES = [tool["name"] for tool in TOOLS]


def names_of(tools: list[dict[str, Any]]) -> list[str]:
    return [tool["function"]["name"] for tool in tools]


@pytest.mark.parametrize("kind", LISTINGS)
def test_each_tool_of_a_listing_is_read(kind: str) -> None:
    listing = LISTINGS[kind]
    user = {"role": "user", "content": "Hi"}
    for tools in (listing, [listing], (listing,)):
        assert names_of(read_langchain(tools)) == NAMES
        assert names_of(read_llamaindex(tools)) == NAMES
        chat = Chat([user], tools=tools)
        assert [tool.name for tool in chat.tools] == NAMES
        assert [tool.parameters for tool in chat.tools] == [tool["inputSchema"] for tool in TOOLS]
    other = {"name": "other", "inputSchema": FIRST["inputSchema"]}
    assert names_of(read_langchain([other, listing])) == ["other", *NAMES]
    assert [tool.name for tool in Chat([user], tools=[other, listing]).tools] == ["other", *NAMES]


def test_one_tool_is_a_list_of_one() -> None:
    user = {"role": "user", "content": "Hi"}
    for tool in (FIRST, McpTool(**FIRST), {"tools": [FIRST]}):
        for tools in (tool, [tool]):
            [name] = names_of(read_langchain(tools))
            assert name == FIRST["name"]
            assert read_llamaindex(tools) == read_langchain(tools) == read_langchain([FIRST])
            [read] = Chat([user], tools=tools).tools
            assert read.name == name


def test_a_listing_without_tools_is_empty() -> None:
    assert read_langchain({"tools": []}) == read_llamaindex({"tools": []}) == []
    assert Chat([{"role": "user", "content": "Hi"}], tools={"tools": []}).tools == ()


@pytest.fixture(scope="module")
def chat() -> Iterator[ChatStars]:
    made = ChatStars(
        model=random_chat_model(),
        reward=lambda prompt, text: 1.0,
        schedule={"kind": "none"},
        num_candidates=1,
        max_tokens=600,
        segment_len=60,
    )
    yield made
    made.close()


@pytest.mark.slow
def test_a_tool_of_a_listing_is_called(chat: ChatStars) -> None:
    listing = LISTINGS["an answer"]
    bound = chat.bind_tools(listing, tool_choice=SECOND["name"])
    [call] = bound.invoke("Hi").tool_calls
    assert call["name"] == SECOND["name"]
    jsonschema.validate(call["args"], SECOND["inputSchema"])
    llm = StarsLLM(
        model=random_chat_model(),
        reward=lambda prompt, text: 1.0,
        schedule={"kind": "none"},
        num_candidates=1,
        max_tokens=600,
    )
    asked = {"tools": listing, "tool_choice": SECOND["name"]}
    response = llm.chat([ChatMessage("Hi")], **asked)
    [selected] = llm.get_tool_calls_from_response(response)
    assert selected.tool_name == SECOND["name"]
    jsonschema.validate(selected.tool_kwargs, SECOND["inputSchema"])


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_a_listing_is_no_schema(chat: ChatStars, method: Any) -> None:
    for kind in ("a listing", "a listing with a cursor", "an answer", "declarations"):
        with pytest.raises(ConfigError, match=f"got {len(TOOLS)}: {NAMES[0]}, {NAMES[1]}") as found:
            chat.with_structured_output(LISTINGS[kind], method=method)
        assert "bind_tools" in str(found.value.hint)
        with pytest.raises(ConfigError, match="expected one schema"):
            JsonGrammar(json_schema=LISTINGS[kind])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tools": [FIRST], "properties": {}}, "properties: unknown key"),
        ({"tools": [FIRST], "schema": {"type": "object"}}, "schema: unknown key"),
        ({"result": {"tools": [FIRST]}, "error": {}}, "'result', 'error' is not a JSON schema"),
        ({"tools": [{"inputSchema": {"type": "object"}}]}, "a tool needs a name"),
        ({"tools": ["weather"]}, "tools.0: str is not a schema"),
        ({"tools": [{"tools": [{"name": "a", "type": "web_search"}]}]}, "'a' runs on its provider"),
    ],
)
def test_other_dictionaries_are_refused(wrong: Any, words: str) -> None:
    for read in (read_langchain, read_llamaindex):
        with pytest.raises(ValueError, match=words):
            read([wrong])

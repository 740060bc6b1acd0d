"""Tools whose arguments a grammar cannot express: a warning, and checks of complete calls."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import StructuredTool
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, FilePath

import llamaindex_stars
from langchain_stars import ChatStars
from stars_engine import Chat, ConfigError, SamplingParams, StarsConfig, StarsEngine, Tool
from stars_engine.chat.argument_checks import fault_in, unexpressed_of
from tests.support.scripted import scripted

UNIQUE = {"type": "array", "items": {"type": "string", "maxLength": 4}, "uniqueItems": True}


def schema_of(number: int) -> dict[str, Any]:
    """A schema of its own for each test, because warnings come once."""
    properties = {"tags": UNIQUE, "count": {"type": "integer", "maximum": number}}
    return {"type": "object", "properties": properties, "required": ["tags", "count"]}


def tool_of(number: int, name: str = "tag") -> dict[str, Any]:
    function = {"name": name, "description": "Sets tags.", "parameters": schema_of(number)}
    return {"type": "function", "function": function}


def judge(prompt: str, completion: str) -> float:
    return 1.0


def written(name: str, arguments: dict[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def settings(answer: str) -> dict[str, Any]:
    return {
        "model": scripted(lambda asked: "Done." if "<tool_response>" in asked else answer),
        "reward": judge,
        "schedule": {"kind": "none"},
        "max_tokens": 96,
        "seed": 0,
    }


@pytest.mark.slow
def test_langchain_warns_once_and_checks_calls() -> None:
    good = {"tags": ["a", "b"], "count": 1}
    chat = ChatStars(**settings(written("tag", good)))
    with pytest.warns(UserWarning, match=r"'tag': `uniqueItems` at #/properties/tags") as caught:
        bound = chat.bind_tools([tool_of(11)], tool_choice="tag")
    assert "strict=True" in str(caught[0].message)
    again = chat.bind_tools([tool_of(11)])  # agents bind before each call
    assert bound.invoke("Tag it.").tool_calls[0]["args"] == good
    assert again.invoke("Tag it.").tool_calls[0]["args"] == good
    chat = ChatStars(**settings(written("tag", {"tags": ["a", "a"], "count": 1})))
    for message in (
        chat.bind_tools([tool_of(11)], tool_choice="any").invoke("Tag it."),
        chat.invoke("Tag it.", tools=[tool_of(11)]),
        asyncio.run(chat.bind_tools([tool_of(11)]).ainvoke("Tag it.")),
    ):
        assert message.tool_calls == []
        [call] = message.invalid_tool_calls
        assert call["error"] is not None
        assert ".tags do not conform" in call["error"]


def test_strict_refuses_when_tools_are_bound() -> None:
    chat = ChatStars(**settings("Hi"))
    with pytest.raises(ConfigError, match=r"tools\.tag: a grammar cannot express `uniqueItems`"):
        chat.bind_tools([tool_of(12)], strict=True)
    chat.bind_tools([{**tool_of(12), "function": {"name": "a", "parameters": {}}}], strict=True)
    chat.bind_tools([tool_of(12)], strict=False)  # no grammar, so there is nothing to report
    llm = llamaindex_stars.StarsLLM(**settings("Hi"))
    tool = FunctionTool.from_defaults(lambda path: path, name="read", fn_schema=Reading)
    with pytest.raises(ConfigError, match=r"tools\.read: a grammar cannot express `type`"):
        llm.chat_with_tools([tool], "Read.", strict=True)


class Endless(BaseModel):
    """No finite value has all of these."""

    inner: Endless


@pytest.mark.parametrize("kind", ["Reading", "Endless"])
def test_structured_output_by_calls_is_refused_before_a_token_is_drawn(kind: str) -> None:
    """Nothing else could come of a call that does not conform."""
    cls = {"Reading": Reading, "Endless": Endless}[kind]
    reason = {"Reading": "a grammar cannot express `type`", "Endless": "no value satisfies"}[kind]
    chat = ChatStars(**settings("Hi"))
    with pytest.raises(ConfigError, match=rf"with_structured_output: tools\.{kind}: {reason}"):
        chat.with_structured_output(cls, method="function_calling")
    llm = llamaindex_stars.StarsLLM(**settings("Hi"))
    prompt = PromptTemplate("Read.")
    steps = llm.engine().stats().num_steps
    for ask in (
        lambda: llm.structured_predict(cls, prompt),
        lambda: asyncio.run(llm.astructured_predict(cls, prompt)),
        lambda: list(llm.stream_structured_predict(cls, prompt)),
        lambda: llm.as_structured_llm(cls).complete("Read."),
        lambda: llm.predict_and_call([get_function_tool(cls)], "Read.", tool_required=True),
    ):
        with pytest.raises(ConfigError, match=rf"tools\.{kind}: {reason}.*strict=False"):
            ask()
    assert llm.engine().stats().num_steps == steps


def test_structured_output_by_calls_may_be_lenient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").touch()
    given = settings(written("Reading", {"path": "a"}))
    with pytest.warns(UserWarning, match="a file must exist"):
        model = ChatStars(**given).with_structured_output(
            Reading, method="function_calling", strict=False
        )
    assert model.invoke("Read.") == Reading(path="a")
    llm = llamaindex_stars.StarsLLM(**given)
    with pytest.warns(UserWarning, match="a file must exist"):
        found = llm.structured_predict(
            Reading, PromptTemplate("Read."), llm_kwargs={"strict": False}
        )
    assert found == Reading(path="a")


class Reading(BaseModel):
    """Reads a file."""

    path: FilePath


def test_llamaindex_warns_once_and_checks_calls() -> None:
    tool = FunctionTool.from_defaults(lambda path: path, name="read", fn_schema=Reading)
    llm = llamaindex_stars.StarsLLM(**settings(written("read", {"path": "a.txt"})))
    with pytest.warns(UserWarning, match=r"'read': `type` at .*: a file must exist"):
        response = llm.chat_with_tools([tool], "Read a.txt.")
    [block] = [part for part in response.message.blocks if isinstance(part, ToolCallBlock)]
    assert block.tool_kwargs == {"path": "a.txt"}
    [call] = llm.get_tool_calls_from_response(llm.chat_with_tools([tool], "Read a.txt."))
    assert call.tool_kwargs == {"path": "a.txt"}


def test_one_such_tool_does_not_break_an_agent() -> None:
    def read(path: FilePath) -> str:
        """Reads a file."""
        return f"{path} says hello."

    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    tools = [StructuredTool.from_function(read), StructuredTool.from_function(add)]
    chat = ChatStars(**settings(written("add", {"a": 1, "b": 2})))
    agent = create_agent(chat, tools)
    with pytest.warns(UserWarning, match="a file must exist"):
        done = agent.invoke({"messages": [("user", "Add 1 and 2.")]})
    assert [message.text for message in done["messages"][1:]] == ["", "3", "Done."]


@pytest.mark.parametrize(
    ("part", "value", "is_valid"),
    [
        (UNIQUE, ["a", "b"], True),
        (UNIQUE, ["a", "a"], False),
        ({"contentSchema": {}, "type": "string"}, "x", True),
        ({"type": "string", "pattern": "(a)\\1"}, "aa", True),
        ({"type": "string", "pattern": "(a)\\1"}, "ab", False),
        ({"$ref": "https://localhost/other.json"}, 1, True),  # nothing is fetched
        ({"type": "array", "contains": {"type": "integer"}}, ["a"], False),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 4}]}, "long text", True),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 4}]}, "both", False),
    ],
)
def test_what_a_grammar_cannot_express_is_checked(part: Any, value: Any, is_valid: bool) -> None:
    schema = {"type": "object", "properties": {"x": part}, "required": ["x"]}
    tool = Tool(name="f", parameters=schema, strict=False)
    assert unexpressed_of([tool])
    assert (fault_in({"x": value}, tool) == "") == is_valid
    assert fault_in({"x": value}, tool.replace(strict=True)) == ""  # the grammar refuses it


@pytest.mark.parametrize(
    ("part", "value", "is_valid"),
    [
        ({"type": "string", "pattern": r"^\p{L}+$"}, "12", True),
        ({"type": "array", "items": {"pattern": r"\p{L}"}, "uniqueItems": True}, ["1", "1"], False),
        ({"type": "any"}, [1], True),
        ({"allOf": [{"type": "any"}, {"type": "string"}]}, 1, False),
        ({"$ref": "#/$defs/absent", "type": "string"}, 1, False),
        ({"required": True, "type": "string"}, "x", True),
        ({"not": {"pattern": r"\p{L}"}}, "12", True),
        ({"not": {"allOf": [{"$ref": "#/absent"}]}}, "12", True),
        ({"oneOf": [{"type": "string"}, {"$ref": "#/absent"}]}, "12", True),
        ({"if": {"pattern": r"\p{L}"}, "then": {"type": "null"}}, "12", True),
    ],
)
def test_parts_that_nothing_can_read_leave_the_others_checked(
    part: Any, value: Any, is_valid: bool
) -> None:
    schema = {"type": "object", "properties": {"x": part, "y": UNIQUE}}
    tool = Tool(name="f", parameters=schema, strict=False)
    assert (fault_in({"x": value}, tool) == "") == is_valid
    assert ".y" in fault_in({"x": value, "y": ["a", "a"]}, tool) or not is_valid


def test_the_engine_refuses_such_tools_unless_they_are_lenient() -> None:
    given = settings(written("tag", {"tags": ["a", "b"], "count": 1}))
    config = StarsConfig(model=given["model"], reward=judge, align={"schedule": {"kind": "none"}})
    sampling = SamplingParams(max_tokens=96, seed=0)
    with StarsEngine(config) as engine:
        messages = [{"role": "user", "content": "Tag it."}]
        strict = Tool(**tool_of(13)["function"])
        with pytest.raises(ConfigError, match="uniqueItems"):
            engine.generate(Chat(messages, tools=[strict]), sampling=sampling)
        lenient = {**tool_of(13), "function": {**tool_of(13)["function"], "strict": False}}
        [result] = engine.generate(Chat(messages, tools=[lenient]), sampling=sampling)
    assert result.message is not None
    assert result.message.tool_calls[0].arguments["tags"] == ["a", "b"]


def test_strict_refuses_tools_of_one_name_when_they_are_bound() -> None:
    tools = [tool_of(41), tool_of(42), tool_of(43, name="other")]
    with pytest.raises(ConfigError, match=r"bind_tools: tools\.tag: 2 tools have this name"):
        ChatStars().bind_tools(tools, strict=True)
    chat = ChatStars(**settings("Hi")).bind_tools(tools, strict=False)
    with pytest.raises(ConfigError, match="two tools are called 'tag'"):
        chat.invoke("Tag it.")
    double = FunctionTool.from_defaults(abs, name="tag", description="of a number")
    llm = llamaindex_stars.StarsLLM(**settings("Hi"))
    with pytest.raises(ConfigError, match=r"tools\.tag: 2 tools have this name"):
        llm.chat_with_tools([double, double], user_msg="Hi", strict=True)
    with pytest.raises(ConfigError, match="two tools are called 'tag'"):
        llm.chat_with_tools([double, double], user_msg="Hi")

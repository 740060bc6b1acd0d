"""Schemas and tools in the formats of vendors: read, or refused by name."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from stars_engine import Chat, ConfigError, JsonGrammar, PromptError, Tool, ToolCall
from stars_engine.chat.formats import HERMES, MISTRAL_NAMED
from stars_engine.chat.tool_calls import read_calls
from stars_engine.integrations.response_formats import grammar_of_response_format
from stars_engine.integrations.tool_names import ToolNames, read_tool_choice
from stars_engine.schema_formats.compact import compacted
from stars_engine.schema_formats.dialects import as_json_schema
from stars_engine.schema_formats.parts import referred, rooted, without_titles
from stars_engine.schema_formats.wrappings import read_schema, read_tools
from tests.support.grammars import check, held, texts
from tests.support.random_models import random_model
from tests.support.vendor_schemas import ANSWERS, GEMINI, TOOLS, S


@pytest.mark.parametrize("kind", TOOLS)
def test_tools_of_every_vendor(kind: str) -> None:
    [found] = read_tools(TOOLS[kind])
    assert found.name == "V"
    tool = found.as_tool()["function"]
    assert tool["parameters"]["properties"] == {"a": {"type": "integer"}}
    assert tool["parameters"]["required"] == ["a"]
    assert tool["description"] == ("d" if found.description else "")
    assert read_schema(TOOLS[kind]).schema == found.schema


@pytest.mark.parametrize("kind", [kind for kind in TOOLS if not kind.startswith("json schema")])
def test_the_engine_reads_the_same_tools(kind: str) -> None:
    [tool] = Chat([{"role": "user", "content": "Hi"}], tools=[TOOLS[kind]]).tools
    assert tool.name == "V"
    assert tool.parameters["properties"] == {"a": {"type": "integer"}}


@pytest.mark.parametrize("kind", ANSWERS)
def test_formats_of_answers(kind: str) -> None:
    schema = read_schema(ANSWERS[kind]).schema
    assert schema is not None
    assert schema["properties"] == {"a": {"type": "integer"}}
    grammar = grammar_of_response_format(ANSWERS[kind])
    assert grammar is not None
    assert grammar.json_schema == schema
    assert JsonGrammar(json_schema=ANSWERS[kind]).json_schema == schema


def test_formats_without_a_schema() -> None:
    for text in ({"type": "text"}, {"text": {"format": {"type": "text"}}}):
        assert grammar_of_response_format(text) is None
    for anything in ({"type": "json_object"}, {"response_format": {"type": "json_object"}}):
        assert grammar_of_response_format(anything) == JsonGrammar()


def test_grammars_and_tools_of_what_is_no_schema_are_refused() -> None:
    """Without a keyword that is known, any value would be valid."""
    for given in ({"name": "V", "fooSchema": S}, {"a": S}, {"text": S}):
        with pytest.raises(ConfigError, match="is not a JSON schema"):
            JsonGrammar(json_schema=given)
    with pytest.raises(ConfigError, match="no keyword of JSON Schema"):
        Tool(name="V", parameters={"a": {"type": "integer"}})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a dictionary with no keys is not a JSON schema"),
        ({"name": "V", "fooSchema": S}, "'name', 'fooSchema' is not a JSON schema"),
        ({"name": "V", "body": S}, "'name', 'body' is not a JSON schema"),
        ({"name": "V", "inputSchema": S, "foo": 1}, "foo: unknown key next to a schema"),
        ({"type": "object", "inputs": S}, "inputs: this unknown key contains a schema"),
        ({**S, "inputSchema": S}, "unknown key next to a schema"),
        ({"parameters": S, "schema": S}, "'parameters' and 'schema' are both schemas"),
        (
            {"name": "V", "schema": "{}"},
            "schema: str is not a schema. Hint: parse it with json.loads",
        ),
        ({"name": "V", "schema": {"name": "V"}}, "schema: there is a name, but no schema"),
        ({"name": "V", "schema": {"a": S}}, "schema: a dictionary with 'a' is not a JSON schema"),
        ({"name": "V"}, "there is no schema, only 'name'"),
        ({"type": "xml"}, "type: unknown type 'xml'"),
        ({"type": "str"}, "type: unknown type 'str'"),
        ({"type": "json_schema", "properties": {}}, "is not a JSON schema"),
        (
            {"type": "object", "function": {"name": "V", "parameters": S}},
            "type: unknown wrapping type 'object'",
        ),
        ({"type": "OBJECT", "properties": {"a": {"type": "TEXT"}}}, "unknown type 'text'"),
        ({"functionDeclarations": [GEMINI, GEMINI]}, "expected one schema, got 2"),
        (
            {"name": "V", "parameter_definitions": {"a": {"type": "tensor"}}},
            "a.type: unknown type 'tensor'",
        ),
        ({"name": "V", "parameter_definitions": {"a": {"kind": "int"}}}, "unknown key 'kind' of a"),
        ({"name": 5, "schema": S}, "name: expected a string, got 5"),
        ({"name": "V", "schema": S, "strict": "yes"}, "strict: expected true or false, got 'yes'"),
        ({1: S}, "the keys of a schema must be strings"),
        # Settings contain formats; they are not schemas themselves.
        ({"text": S}, "text: a dictionary with 'type', 'properties', 'required' is not a JSON"),
        ({"output_config": S}, "output_config: a dictionary with 'type'"),
        ({"text": {"format": S, "verbosity": "low"}}, "text.verbosity: unknown key next to"),
        ({"structured_outputs": {"regex": "a+"}}, "use grammar=RegexGrammar(...)"),
        ({"guided_choice": ["a", "b"]}, "use grammar=RegexGrammar(...)"),
        ({"guided_json": "{}"}, "guided_json: str is not a schema. Hint: parse it with json.loads"),
        ({"structured_outputs": {"json": "{}"}}, "structured_outputs.json: str is not a schema"),
        ({"json_schema": "{}"}, "json_schema: str is not a schema"),
        ({"parameters": {**S, "schema": S}}, "parameters.schema: this unknown key contains"),
        ({"value": S}, "a dictionary with 'value' is not a JSON schema"),
    ],
)
def test_invalid_schemas_are_refused_by_name(given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_schema(given)
    assert message in str(caught.value)


def test_schemas_that_are_nested_too_deep_are_refused() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(5_000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(ConfigError, match="nested too deep"):
        read_schema(deep)


def test_invalid_tools() -> None:
    hosted: list[dict[str, Any]] = [
        {"type": "web_search"},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
        {"googleSearch": {}},
        {"type": "custom", "name": "code", "format": {"type": "text"}},
    ]
    for tool in hosted:
        with pytest.raises(PromptError, match="runs on its provider's servers"):
            read_tools(tool)
    with pytest.raises(ConfigError, match="a tool needs a name"):
        read_tools(S)
    [bare] = read_tools({"name": "now", "description": "Tells the time."})
    assert bare.as_tool()["function"]["parameters"] == {"type": "object", "properties": {}}
    [empty] = read_tools({"name": "now", "inputSchema": {}})
    assert empty.as_tool()["function"]["parameters"]["properties"] == {}


def test_schemas_of_gemini_are_converted() -> None:
    given = {
        "type": "OBJECT",
        "properties": {
            "n": {"type": "INTEGER", "format": "int32", "nullable": True},
            "kind": {"type": "STRING", "format": "enum", "enum": ["a", "b"], "nullable": True},
            "list": {"type": "ARRAY", "items": {"type": "STRING"}, "minItems": "1"},
            "type": {"any_of": [{"type": "STRING"}, {"type": "NUMBER"}]},
        },
        "propertyOrdering": ["list", "n"],
        "default": {"type": "OBJECT"},  # a value, and no schema
    }
    schema = read_schema(given).schema
    assert schema is not None
    assert list(schema["properties"]) == ["list", "n", "kind", "type"]
    assert schema["properties"] == {
        "n": {"type": ["integer", "null"]},
        "kind": {"type": ["string", "null"], "enum": ["a", "b", None]},
        "list": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "type": {"anyOf": [{"type": "string"}, {"type": "number"}]},
    }
    assert schema["default"] == {"type": "OBJECT"}


def test_parameters_of_cohere() -> None:
    definitions = {
        "days": {"type": "List[str]", "description": "which"},
        "sizes": {"type": "Dict[str, List[float]]", "required": True},
        "any": {"type": "dict"},
    }
    schema = read_schema({"name": "V", "parameter_definitions": definitions}).schema
    assert schema == {
        "type": "object",
        "properties": {
            "days": {"type": "array", "items": {"type": "string"}, "description": "which"},
            "sizes": {
                "type": "object",
                "additionalProperties": {"type": "array", "items": {"type": "number"}},
            },
            "any": {"type": "object"},
        },
        "required": ["sizes"],
    }


def test_parts_of_schemas() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}, "title": "Node"}
    recursive = {"$ref": "#/$defs/Node", "$defs": {"Node": node, "Other": {"type": "string"}}}
    assert rooted(recursive)["properties"] == node["properties"]
    assert set(referred(rooted(recursive))["$defs"]) == {"Node"}
    circle = {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}
    assert rooted(circle)["$ref"] == "#/$defs/A"
    assert rooted({"allOf": [{"$ref": "#/definitions/A"}], "definitions": {"A": S}})["required"]
    plain = {**S, "$defs": {"A": S}}
    assert "$defs" not in referred(plain)
    titled = {"title": "T", "properties": {"title": {"title": "Title", "const": {"title": "x"}}}}
    assert without_titles(titled) == {"properties": {"title": {"const": {"title": "x"}}}}


def test_schemas_in_prompts_are_short() -> None:
    class Tree(BaseModel):
        """A tree."""

        name: Literal["a"]
        kids: list[Tree] = []

    class Cat(BaseModel):
        kind: Literal["cat"] = "cat"
        lives: int | None = None

    class Dog(BaseModel):
        kind: Literal["dog"] = "dog"

    class Owner(BaseModel):
        pet: Cat | Dog = Field(discriminator="kind")

    assert compacted(rooted(Tree.model_json_schema())) == {
        "description": "A tree.",
        "type": "object",
        "properties": {"name": {"const": "a"}, "kids": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["name"],
    }
    cat = {"kind": {"const": "cat"}, "lives": {"type": ["integer", "null"]}}
    assert compacted(Owner.model_json_schema())["properties"]["pet"]["oneOf"] == [
        {"type": "object", "properties": cat},
        {"type": "object", "properties": {"kind": {"const": "dog"}}},
    ]


@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_short_schemas_allow_the_same_values(seed: int) -> None:
    schema = rooted(random_model(seed).model_json_schema())
    short = compacted(schema)
    assert len(json.dumps(short)) < len(json.dumps(schema))
    for one, other in ((schema, short), (short, schema)):
        state = held(one, compact=True)
        for text in [] if state is None else texts(state, 4, seed):
            check(other, text)


def test_names_are_written_as_ascii_and_returned_as_given() -> None:
    given = [
        "look up",
        "look_up",
        "math.add",
        "Box[bool]",
        "Größe für",
        "天气",
        "新闻",
        "x" * 80,
        "x" * 90,
        "auto ",
    ]
    names = ToolNames(given)
    written = [names.written(name) for name in given]
    assert len(set(written)) == len(given)
    assert [names.given(name) for name in written] == given
    assert written[:7] == [
        "look_up_2",
        "look_up",
        "math.add",
        "Box_bool",
        "Gro_e_fur",
        "tool",
        "tool_2",
    ]
    for name in written:
        Tool(name=name)
        assert name not in ("auto", "none", "required", "any")
    # A call of the conversation so far, of a tool that is no more.
    assert names.written("look?up") not in written
    assert ToolNames(reversed(given)).written("look_up") == "look_up"
    described = names.tool({"type": "function", "function": {"name": "天气"}})["function"]
    assert described["description"] == "天气"


def test_choices_of_tools() -> None:
    names = ["look up", "b"]
    assert (
        read_tool_choice({"type": "function", "function": {"name": "look up"}}, names) == names[0]
    )
    assert read_tool_choice({"type": "any"}, names) == "any"
    assert read_tool_choice({"type": "required"}, names) == "required"
    assert ToolNames(names).choice("look up") == "look_up"
    assert ToolNames(names).choice("auto") == "auto"
    with pytest.raises(PromptError, match="one of 'auto', 'none', 'required', 'any', 'look up'"):
        read_tool_choice("look_up", names)


@pytest.mark.parametrize("written", ["null", "", " ", "{}", None])
def test_missing_arguments_are_empty_however_they_are_written(written: str | None) -> None:
    assert ToolCall(name="now", arguments=written).arguments == {}  # type: ignore[arg-type]
    call = {"function": {"name": "now", "arguments": written}}
    assert ToolCall.model_validate(call).arguments == {}
    tools = [Tool(name="now")]
    if written:
        given = "null" if not written.strip() else written
        text = f'<tool_call>\n{{"name": "now", "arguments": {given}}}\n</tool_call>'
        assert [call.arguments for call in read_calls(text, HERMES, tools).valid] == [{}]
    named = f"[TOOL_CALLS]now[ARGS]{written or ''}"
    assert [call.arguments for call in read_calls(named, MISTRAL_NAMED, tools).valid] == [{}]


def test_invalid_arguments_are_refused() -> None:
    for written in ("nul", "[]", "5", '"null"'):
        with pytest.raises(ConfigError, match="arguments"):
            ToolCall(name="now", arguments=written)  # type: ignore[arg-type]


def test_nullable_of_openapi_is_a_type() -> None:
    given = {
        "type": "object",
        "properties": {
            "a": {"type": "string", "nullable": True},
            "b": {"type": ["integer", "null"], "nullable": True},
            "c": {"enum": ["x"], "nullable": True},
            "d": {"type": "string", "nullable": False},
        },
    }
    found = as_json_schema(given)["properties"]
    assert found["a"] == {"type": ["string", "null"]}
    assert found["b"] == {"type": ["integer", "null"]}
    assert found["c"] == {"enum": ["x", None]}
    assert found["d"]["type"] == "string"

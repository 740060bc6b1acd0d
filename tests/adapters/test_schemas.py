"""Schemas and tools through the adapters: answers are valid, and names are unchanged."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import re
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar

import jsonschema
import pydantic.v1 as pydantic_1
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import PydanticToolsParser
from langchain_core.tools import BaseTool, InjectedToolArg, StructuredTool, tool
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.program.utils import get_program_for_llm
from llama_index.core.tools import FunctionTool, ToolMetadata
from pydantic import BaseModel, ConfigDict, Field, RootModel
from typing_extensions import TypedDict

from langchain_stars import ChatStars
from langchain_stars.messages import read_messages
from langchain_stars.tools import read_schema, read_tools
from llamaindex_stars import StarsLLM
from stars_engine import (
    ConfigError,
    ContextOverflowError,
    JsonGrammar,
    PromptError,
    TransformersModel,
)
from tests.support.mcp_tools import TOOLS as MCP_TOOLS
from tests.support.processes import run_python
from tests.support.scripted import ENDING, random_chat_model, scripted
from tests.support.vendor_schemas import ANSWERS, TOOLS, S

T = TypeVar("T")
METHODS = ["json_schema", "json_mode", "function_calling"]


class Tree(BaseModel):
    """A tree."""

    name: Literal["a"]
    kids: list[Tree] = Field(default=[], max_length=2)


class Left(BaseModel):
    to: Right | None = None


class Right(BaseModel):
    to: Left | None = None


class Box(BaseModel, Generic[T]):
    value: T


class Titled(BaseModel):
    """What it is."""

    model_config = ConfigDict(title="My Title (v2)")
    n: int = Field(ge=0, le=9)


class OldTree(pydantic_1.BaseModel):
    """A tree."""

    name: Literal["a"]
    kids: list[OldTree] = []


OldTree.update_forward_refs()


class TreeDict(TypedDict):
    """A tree.

    Args:
        name: What it is called.
    """

    name: Literal["a"]
    n: Annotated[int, ..., "a number"]
    kids: NotRequired[list[TreeDict]]


def organize(tree: Tree) -> str:
    """Organizes."""
    return str(tree)


def link(first: Left, rest: list[Right]) -> str:
    """Links."""
    return "done"


class Organizer(BaseTool):
    name: str = "organizer"
    description: str = "Organizes."
    args_schema: Any = Tree

    def _run(self, **_: Any) -> str:
        return "done"


DICT_TOOL = StructuredTool(
    name="by_dict",
    description="Organizes.",
    args_schema=Tree.model_json_schema(),
    func=lambda **_: "done",
)


def judge(prompt: str, completion: str) -> float:
    return 1.0


FIELDS: dict[str, Any] = {
    "reward": judge,
    "schedule": {"kind": "none"},
    "num_candidates": 1,
    "segment_len": 60,
    "max_tokens": 300,
    "seed": 0,
    "logit_bias": ENDING,
}


@pytest.fixture(scope="module")
def model() -> Iterator[TransformersModel]:
    made = random_chat_model()
    kept = ChatStars(model=made, **FIELDS).load()
    yield made
    kept.close()


@pytest.fixture(scope="module")
def chat(model: TransformersModel) -> ChatStars:
    return ChatStars(model=model, **FIELDS)


@pytest.fixture(scope="module")
def llm(model: TransformersModel) -> StarsLLM:
    return StarsLLM(model=model, **FIELDS)


@pytest.fixture(autouse=True)
def current_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """LlamaIndex's synchronous calls take the current loop, or make one that nobody closes."""
    if inspect.iscoroutinefunction(request.function):
        yield
        return
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
    asyncio.set_event_loop(None)


def the_call(message: Any) -> dict[str, Any]:
    [call] = message.tool_calls
    return call  # type: ignore[no-any-return]


# --- recursive arguments ---

RECURSIVE: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "function": (organize, lambda args: Tree.model_validate(args["tree"])),
    "@tool": (tool(organize), lambda args: Tree.model_validate(args["tree"])),
    "StructuredTool": (
        StructuredTool.from_function(organize),
        lambda args: Tree.model_validate(args["tree"]),
    ),
    "two that refer to each other": (
        link,
        lambda args: (Left.model_validate(args["first"]), [Right(**r) for r in args["rest"]]),
    ),
    "BaseTool": (Organizer(), Tree.model_validate),
    "dict args_schema": (DICT_TOOL, Tree.model_validate),
    "model": (Tree, Tree.model_validate),
    "pydantic 1": (OldTree, OldTree.parse_obj),
    "TypedDict": (TreeDict, Tree.model_validate),
    "mcp": ({"name": "t", "inputSchema": Tree.model_json_schema()}, Tree.model_validate),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECURSIVE)
def test_recursive_arguments_match_their_schema(chat: ChatStars, kind: str) -> None:
    given, validate = RECURSIVE[kind]
    [tool] = read_tools([given])
    assert "$ref" in json.dumps(tool)
    assert tool["function"]["parameters"]["properties"]
    for seed in range(2):
        asked = {"tool_choice": "any", "seed": seed, "max_tokens": 900}
        calls = chat.bind_tools([given], **asked).invoke("Hi").tool_calls
        assert calls
        for call in calls:
            assert call["name"] == tool["function"]["name"]
            validate(call["args"])


def test_schemas_contain_docstrings_and_annotations() -> None:
    function = read_tools([TreeDict])[0]["function"]
    assert function["description"] == "A tree."
    parameters = function["parameters"]
    assert parameters["properties"]["name"]["description"] == "What it is called."
    assert parameters["properties"]["n"]["description"] == "a number"
    assert parameters["required"] == ["name", "n"]
    assert read_tools([Tree])[0]["function"]["description"] == "A tree."
    assert '"title"' not in json.dumps(read_tools([organize, Tree, TreeDict]))


def test_arguments_that_the_program_supplies_are_not_in_the_schema() -> None:
    class Secret:
        """Has no schema."""

    class Arguments(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
        which: Box[int] = Field(alias="theBox")
        user: Annotated[Box[str], InjectedToolArg]

    def use(**_: Any) -> str:
        return ""

    made = StructuredTool(name="use", description="d", args_schema=Arguments, func=use)
    parameters = read_tools([made])[0]["function"]["parameters"]
    assert list(parameters["properties"]) == ["theBox"]
    assert parameters["required"] == ["theBox"]
    assert parameters["additionalProperties"] is False
    assert list(parameters["$defs"]) == ["Box_int_"]

    @tool
    def hidden(n: int, secret: Annotated[Any, InjectedToolArg]) -> str:
        """Has a secret."""
        return ""

    assert list(read_tools([hidden])[0]["function"]["parameters"]["properties"]) == ["n"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [Tree, OldTree, TreeDict, Box[Tree]])
def test_structured_output_of_recursive_types(chat: ChatStars, schema: Any, method: Any) -> None:
    found = chat.with_structured_output(schema, method=method).invoke("Hi")
    if isinstance(found, dict):
        jsonschema.validate(found, read_schema(schema).schema or {})
    else:
        assert isinstance(found, schema)


@pytest.mark.slow
def test_llamaindex_predicts_recursive_types(llm: StarsLLM) -> None:
    prompt = PromptTemplate("Hi")
    for cls in (Tree, Left, RootModel[Tree]):
        found = llm.structured_predict(cls, prompt)
        assert isinstance(found, cls)
        assert list(llm.stream_structured_predict(cls, prompt))[-1] == found
        assert asyncio.run(llm.astructured_predict(cls, prompt)) == found
        assert llm.as_structured_llm(cls).complete("Hi").raw == found
        assert isinstance(get_program_for_llm(cls, prompt, llm)(), cls)


class Kids(BaseModel):
    name: Literal["a"]
    kids: list[Kids] = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: Literal[7, 9]


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Owner(BaseModel):
    pet: Cat | Dog = Field(discriminator="kind")


class Many(BaseModel):
    """Has more fields than the context of the embedded pair can hold in a prompt."""

    first_of_the_owners: Owner
    trees_by_the_names_of_places: dict[str, Kids] = Field(description="where they grow " * 12)
    colours_of_the_cats_of_owners: list[Literal["black", "white", "ginger", "tabby", "grey"]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:a tool call was cut off")  # so few tokens are left
@pytest.mark.parametrize("cls", [Kids, Owner])
def test_schemas_fit_the_context_of_the_embedded_pair(cls: Any) -> None:
    llm = StarsLLM(max_tokens=150, seed=0)
    prompt = PromptTemplate("Give a small one.")
    found = llm.structured_predict(cls, prompt)
    assert isinstance(found, cls)
    assert list(llm.stream_structured_predict(cls, prompt))[-1] == found
    chat = ChatStars(max_tokens=150, on_overflow="clamp", seed=0)
    for method in METHODS:
        made = chat.with_structured_output(cls, method=method).invoke("Give a small one.")  # type: ignore[arg-type]
        assert isinstance(made, cls)
    calls = chat.bind_tools([cls], tool_choice="any").invoke("Hi").tool_calls
    assert all(cls.model_validate(call["args"]) for call in calls)


def test_schemas_beyond_the_context_are_refused_before_the_first_token() -> None:
    chat = ChatStars(max_tokens=150, on_overflow="clamp", seed=0).load()
    llm = StarsLLM(max_tokens=150, seed=0)
    before = chat.engine().stats().num_steps
    for ask in (
        lambda: chat.with_structured_output(Many, method="function_calling").invoke("Hi"),
        lambda: chat.bind_tools([Many], tool_choice="any").invoke("Hi"),
        lambda: llm.structured_predict(Many, PromptTemplate("Hi")),
    ):
        with pytest.raises(ContextOverflowError) as caught:
            ask()
        said = str(caught.value)
        assert re.search(r"the prompt has \d+ tokens, about \d+ of them for its tools", said)
        assert "the model's context is 512 tokens. Hint: shorten the prompt, or the desc" in said
    # With room for some text, but not for a call.
    with pytest.raises(ContextOverflowError, match="the shortest tool call has about"):
        chat.bind_tools([Kids], tool_choice="any").invoke("Give a small one. " * 58)
    assert chat.engine().stats().num_steps == before


def test_llamaindex_calls_tools_with_recursive_arguments(llm: StarsLLM) -> None:
    seen: list[Any] = []

    def note(**given: Any) -> str:
        seen.append(given)
        return "noted"

    by_model = FunctionTool.from_defaults(note, name="note it", fn_schema=Tree)
    answer = llm.predict_and_call([by_model], user_msg="Hi", tool_required=True)
    assert str(answer) == "noted"
    answer = asyncio.run(llm.apredict_and_call([by_model], user_msg="Hi", tool_required=True))
    assert str(answer) == "noted"
    for given in seen:
        Tree.model_validate(given)
    by_function = FunctionTool.from_defaults(organize)
    answer = llm.predict_and_call([by_function], user_msg="Hi", tool_required=True)
    [source] = answer.sources
    assert not source.is_error
    Tree.model_validate(source.raw_input["kwargs"]["tree"])


# --- schemas in every wrapping ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [*TOOLS, *(f"answer: {kind}" for kind in ANSWERS)])
def test_wrapped_schemas_constrain_the_answer(method: Any, kind: str) -> None:
    """The model would write something else without the grammar."""
    given = ANSWERS[kind[8:]] if kind.startswith("answer: ") else TOOLS[kind]
    chat = ChatStars(max_tokens=40)
    bound: Any = chat.with_structured_output(given, method=method)
    settings = bound.steps[0].kwargs
    if method == "function_calling":
        parameters = settings["tools"][0]["function"]["parameters"]
        assert parameters["properties"] == {"a": {"type": "integer"}}
        assert parameters["required"] == ["a"]
    else:
        assert settings["grammar"].json_schema["properties"] == {"a": {"type": "integer"}}


@pytest.mark.parametrize("method", METHODS)
def test_wrapped_schemas_are_answered(chat: ChatStars, method: Any) -> None:
    short = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    for given in ({"name": "V", "inputSchema": short}, {"name": "V v", "input_schema": short}):
        found = chat.with_structured_output(given, method=method).invoke("Hi")
        assert found in ({"a": 1}, {"a": 2})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "given", [{"name": "V", "fooSchema": S}, {"a": S}, {"name": "V", "schema": "{}"}, {}]
)
def test_an_invalid_schema_is_refused_when_it_is_bound(
    chat: ChatStars, llm: StarsLLM, method: Any, given: Any
) -> None:
    with pytest.raises(ConfigError, match="schema"):
        chat.with_structured_output(given, method=method)
    with pytest.raises(ConfigError, match="schema"):
        chat.bind_tools([given])
    steps = chat.engine().stats().num_steps
    with pytest.raises(ConfigError, match="response_format"):
        chat.invoke("Hi", response_format=given)
    with pytest.raises(ConfigError, match="response_format"):
        llm.chat([ChatMessage("Hi")], response_format=given)
    with pytest.raises(ConfigError):
        llm.chat([ChatMessage("Hi")], tools=[given])
    assert chat.engine().stats().num_steps == steps


def test_response_formats_in_both_adapters(chat: ChatStars, llm: StarsLLM) -> None:
    short = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    for given in (
        {"type": "json_schema", "json_schema": {"name": "V", "schema": short}},
        {"type": "json_object", "schema": short},
        {"responseMimeType": "application/json", "responseSchema": short},
        short,
    ):
        jsonschema.validate(json.loads(chat.invoke("Hi", response_format=given).text), short)
        said = llm.chat([ChatMessage("Hi")], response_format=given).message.content
        jsonschema.validate(json.loads(said or ""), short)
    said = llm.complete("Hi", response_format=Tree).text
    Tree.model_validate_json(said)
    with pytest.raises(ConfigError, match="response_format and grammar both"):
        llm.chat([ChatMessage("Hi")], response_format=short, grammar=Tree)


@pytest.mark.slow
@pytest.mark.parametrize("given", MCP_TOOLS, ids=lambda given: given["name"])
def test_tools_of_mcp_servers(chat: ChatStars, llm: StarsLLM, given: Any) -> None:
    call = the_call(chat.bind_tools(MCP_TOOLS, tool_choice=given["name"]).invoke("Hi"))
    assert call["name"] == given["name"]
    jsonschema.validate(call["args"], given["inputSchema"])
    asked = {"tools": MCP_TOOLS, "tool_choice": given["name"]}
    response = llm.chat([ChatMessage("Hi")], **asked)
    [selected] = llm.get_tool_calls_from_response(response)
    assert selected.tool_name == given["name"]
    jsonschema.validate(selected.tool_kwargs, given["inputSchema"])


# --- names ---

NAMES = ["math.add", "Box[bool]", "look up", "天气", "x" * 90, "Größe/für", "a.b c", "1st"]


def add(a: Literal[1], b: Literal[2]) -> str:
    """Adds."""
    return str(a + b)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tool_names_are_returned_as_they_were_given(
    chat: ChatStars, llm: StarsLLM, name: str
) -> None:
    made = StructuredTool.from_function(add, name=name)
    other = StructuredTool.from_function(add, name="other")
    for choice in (name, {"type": "function", "function": {"name": name}}):
        bound = chat.bind_tools([other, made], tool_choice=choice)
        assert the_call(bound.invoke("Hi"))["name"] == name
    parts = [part for chunk in bound.stream("Hi") for part in chunk.tool_call_chunks]
    assert [part["name"] for part in parts if part["name"]] == [name]
    ours = FunctionTool.from_defaults(add, name=name)
    assert str(llm.predict_and_call([ours], user_msg="Hi", tool_required=True)) == "3"
    *_, response = llm.stream_chat_with_tools([ours], user_msg="Hi", tool_required=True)
    assert llm.get_tool_calls_from_response(response)[0].tool_name == name


@pytest.mark.slow
def test_names_with_the_same_written_form_stay_distinct(chat: ChatStars) -> None:
    names = ["look up", "look_up", "look?up"]
    tools = [StructuredTool.from_function(add, name=name) for name in names]
    for name in names:
        assert the_call(chat.bind_tools(tools, tool_choice=name).invoke("Hi"))["name"] == name


def test_histories_use_the_tool_names_that_the_model_sees() -> None:
    seen: list[str] = []

    def script(conversation: str) -> str:
        seen.append(conversation)
        return "Three."

    call = {"name": "look up", "args": {"a": 1}, "id": "1", "type": "tool_call"}
    history = [
        HumanMessage("Hi"),
        AIMessage("", tool_calls=[call]),  # type: ignore[list-item]
        ToolMessage("3", tool_call_id="1", name="look up"),
    ]
    fields = {**FIELDS, "logit_bias": {}}
    chat = ChatStars(model=scripted(script), **fields)
    made = StructuredTool.from_function(add, name="look up")
    assert chat.bind_tools([made]).invoke(history).text == "Three."
    assert "look_up" in seen[-1]
    assert "look up" not in seen[-1]
    llm = StarsLLM(model=scripted(script), **fields)
    answered = llm.chat_with_tools(
        [FunctionTool.from_defaults(add, name="look up", description="d")],
        chat_history=[
            ChatMessage("Hi"),
            ChatMessage(
                "",
                role=MessageRole.ASSISTANT,
                tool_calls=[{"function": {"name": "look up", "arguments": "null"}, "id": "1"}],
            ),
            ChatMessage("3", role=MessageRole.TOOL, tool_call_id="1", name="look up"),
        ],
    )
    assert answered.message.content == "Three."
    assert "look up" not in seen[-1]
    [_, called, result] = read_messages(history)
    assert called.tool_calls[0].name == result.name == "look_up"


@pytest.mark.slow
def test_models_whose_titles_are_invalid_tool_names(chat: ChatStars, llm: StarsLLM) -> None:
    for method in METHODS:
        found = chat.with_structured_output(Titled, method=method).invoke("Hi")  # type: ignore[arg-type]
        assert isinstance(found, Titled)
    for choice in ("Titled", "My Title (v2)", "any"):
        bound = chat.bind_tools([Titled], tool_choice=choice)
        assert the_call(bound.invoke("Hi"))["name"] == "My Title (v2)"
    [found] = (bound | PydanticToolsParser(tools=[Titled])).invoke("Hi")
    assert isinstance(found, Titled)
    prompt = PromptTemplate("Hi")
    assert isinstance(llm.structured_predict(Titled, prompt), Titled)
    for cls in (Box[bool], Box[Literal["x y"]], Box[Box[bool]]):
        assert isinstance(llm.structured_predict(cls, prompt), cls)
        assert list(llm.stream_structured_predict(cls, prompt))
        for method in METHODS:
            found = chat.with_structured_output(cls, method=method).invoke("Hi")  # type: ignore[arg-type]
            assert isinstance(found, cls)


def test_invalid_tools_are_refused_by_name(chat: ChatStars, llm: StarsLLM) -> None:
    for given in (5, "add", [add]):
        with pytest.raises(PromptError, match=f"of type {type(given).__name__}"):
            chat.bind_tools([given])  # type: ignore[list-item]
        with pytest.raises(PromptError, match=f"of type {type(given).__name__}"):
            llm.chat([ChatMessage("Hi")], tools=[given])
    with pytest.raises(ConfigError, match="a tool needs a name"):
        chat.bind_tools([S])
    with pytest.raises(PromptError, match="unknown tool_choice='Three'"):
        llm.chat([ChatMessage("Hi")], tools=[Tree], tool_choice="Three")


def test_custom_tool_metadata_is_used(llm: StarsLLM) -> None:
    class CustomMetadata(ToolMetadata):
        def get_parameters_dict(self) -> dict[str, Any]:
            return {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"]}

    made = FunctionTool(lambda **given: str(given), metadata=CustomMetadata("d", "own"))
    assert str(llm.predict_and_call([made], user_msg="Hi", tool_required=True)) == "{'a': 7}"


# --- what else ---


def test_compact_json_has_no_whitespace(chat: ChatStars) -> None:
    numbers = Box[list[Literal[1, 2]]]
    for method in METHODS[:2]:
        made: Any = chat.with_structured_output(
            numbers,
            method=method,
            compact=True,
            include_raw=True,  # type: ignore[arg-type]
        )
        assert made.first.steps__["raw"].kwargs["grammar"] == JsonGrammar(
            json_schema=numbers.model_json_schema(), compact=True
        )
        raw = made.invoke("Hi")["raw"].text
        assert raw == json.dumps(json.loads(raw), separators=(",", ":"))
    free: Any = chat.with_structured_output(None, method="json_mode", compact=True)
    assert free.first.kwargs["grammar"].compact
    called = chat.with_structured_output(numbers, method="function_calling", compact=True)
    assert isinstance(called.invoke("Hi"), numbers)


class Spaced(BaseModel):
    first: Literal["a"]
    rest: list[Literal[1, 2]] = Field(min_length=2, max_length=2)


@pytest.mark.parametrize("compact", [False, True])
def test_compact_calls_have_no_spaces_in_their_arguments(compact: bool) -> None:
    model = random_chat_model()
    fields: dict[str, Any] = {
        "model": model,
        "reward": lambda _, text: 1.0,
        "schedule": {"kind": "none"},
        "num_candidates": 1,
        "max_tokens": 120,
        "segment_len": 120,
        "trace": True,
    }
    chat = ChatStars(**fields)
    called: Any = chat.with_structured_output(
        Spaced, method="function_calling", compact=compact, include_raw=True
    )
    said = called.invoke("Hi")["raw"].response_metadata["stars"]["segments"]
    llm = StarsLLM(**fields)
    tool = FunctionTool.from_defaults(lambda **given: str(given), name="note", fn_schema=Spaced)
    asked = {"tool_required": True, "compact_calls": compact}
    answer = llm.chat_with_tools([tool], user_msg="Hi", **asked)
    for text in (str(said), str(answer.raw)):
        assert ('{"first":"a","rest":[' in text) == compact, text
        assert ('{"first": "a", "rest": [' in text) != compact, text


class Settled(BaseModel):
    model_config = ConfigDict(strict=True)
    day: date
    raw: bytes
    pair: tuple[Literal[1], Literal[2]]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_strict_models_are_validated_as_json(method: Any) -> None:
    model = random_chat_model()
    fields: dict[str, Any] = {
        "model": model,
        "reward": lambda _, text: 1.0,
        "schedule": {"kind": "none"},
        "num_candidates": 1,
        "max_tokens": 300,
        "logit_bias": ENDING,
        "seed": 0,
    }
    made = ChatStars(**fields).with_structured_output(Settled, method=method).invoke("Hi")
    assert isinstance(made, Settled)
    assert made.pair == (1, 2)
    llm = StarsLLM(**fields)
    prompt = PromptTemplate("Hi")
    assert isinstance(llm.structured_predict(Settled, prompt), Settled)
    assert isinstance(list(llm.stream_structured_predict(Settled, prompt))[-1], Settled)


PICKLED = """
import pickle, sys
for made in pickle.load(open(sys.argv[1], "rb")):
    found = made.invoke("Hi")
    if isinstance(found, dict) and "parsing_error" in found:
        assert found["parsing_error"] is None and type(found["parsed"]).__name__ == "Flag"
    print("dict" if isinstance(found, dict) else type(found).__name__)
"""


@pytest.mark.slow
def test_structured_output_can_be_pickled(tmp_path: Path) -> None:
    chat = ChatStars(max_tokens=150, seed=1, schedule={"kind": "none"}, logit_bias={})
    made: list[Any] = [
        chat.with_structured_output(schema, method=method, include_raw=include_raw, compact=True)  # type: ignore[arg-type]
        for schema, include_raw in (
            (Flag, False),
            (Flag, True),
            ({**Flag.model_json_schema(), "title": "V"}, False),
        )
        for method in METHODS
    ]
    made.append(chat.bind_tools([Flag], tool_choice="any"))
    file = tmp_path / "made.pickle"
    file.write_bytes(pickle.dumps(made))
    run = run_python(PICKLED, str(file), cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    expected = ["Flag"] * 3 + ["dict"] * 6 + ["AIMessage"]
    assert run.stdout.split() == expected


class Flag(BaseModel):
    on: bool


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 1},
        {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 1},
        {"type": "object", "additionalProperties": {"enum": [1, 2]}, "maxProperties": 1},
        {
            "type": "object",
            "properties": {"a": {"enum": [1]}},
            "additionalProperties": {"enum": [1, 2]},
            "maxProperties": 1,
        },
    ],
)
def test_limits_of_one(chat: ChatStars, schema: Any) -> None:
    for seed in range(3):
        found = chat.with_structured_output(schema, strict=False, seed=seed).invoke("Hi")
        jsonschema.validate(found, schema)


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_roots_with_several_types_and_with_no_type(chat: ChatStars, method: Any) -> None:
    for kinds in (["string", "null"], ["boolean", "integer"]):
        schema = {"title": "V", "type": kinds, "maxLength": 3, "maximum": 99, "minimum": 0}
        model = chat.with_structured_output(schema, method=method)
        said = model.invoke("Hi")
        jsonschema.validate(said, schema)
    named = {"title": "V", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    assert chat.with_structured_output(named, method=method).invoke("Hi") in ({"a": 1}, {"a": 2})

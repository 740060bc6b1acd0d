"""Schemas of answers: the model reads them, and values of any type come back."""

from __future__ import annotations

import enum
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, NewType

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import HumanMessage, SystemMessage
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, Field, TypeAdapter, field_validator

import llamaindex_stars
from langchain_stars import ChatStars, StarsLLM
from stars_engine import Chat, ConfigError
from tests.support.scripted import scripted

ABOUT, NAMED = "A city of the world.", "its name in English"
OSLO = '{"name": "Oslo"}'


class City(BaseModel):
    """A city of the world."""

    name: str = Field(description=NAMED, max_length=8)


class Mood(enum.Enum):
    """How it feels."""

    GOOD = "up"
    BAD = "down"


class Number(enum.IntEnum):
    ONE = 1
    TEN = 10


Name = NewType("Name", str)


@dataclass
class Place:
    name: str


class Price(BaseModel):
    amount: Decimal


class Node(BaseModel):
    value: int
    kids: list[Node] = []


def judge(prompt: str, completion: str) -> float:
    return 1.0


def writing(answer: str, kind: Callable[..., Any] = ChatStars) -> tuple[Any, list[str]]:
    """A chat that writes an answer, and a list of what it was asked."""
    asked: list[str] = []

    def write(conversation: str) -> str:
        asked.append(conversation)
        return answer

    given = {"schedule": {"kind": "none"}, "reward": judge, "max_tokens": 64}
    return kind(model=scripted(write), **given), asked


@pytest.mark.slow
def test_langchain_shows_the_schema_to_the_model() -> None:
    chat, asked = writing(OSLO)
    provider = create_agent(chat, [], response_format=ProviderStrategy(City))
    wrapped = {"type": "json_schema", "json_schema": {"schema": City.model_json_schema()}}
    for ask in (
        lambda: chat.with_structured_output(City).invoke("Where?"),
        lambda: chat.with_structured_output(City, method="json_mode").invoke("Where?"),
        lambda: chat.with_structured_output(City.model_json_schema()).invoke("Where?"),
        lambda: chat.invoke("Where?", response_format=City),
        lambda: chat.invoke("Where?", response_format=wrapped),
        lambda: provider.invoke({"messages": [("user", "Where?")]}),
    ):
        asked.clear()
        ask()
        assert ABOUT in asked[-1]
        assert NAMED in asked[-1]
    for ask in (
        lambda: chat.with_structured_output(City, describe_schema=False).invoke("Where?"),
        lambda: chat.invoke("Where?", response_format=City, describe_schema=False),
        lambda: chat.invoke("Where?", response_format={"type": "json_object"}),
        lambda: chat.with_structured_output(None, method="json_mode").invoke("Where?"),
    ):
        asked.clear()
        ask()
        assert "schema" not in asked[-1]


def test_the_schema_joins_the_system_message_and_not_the_reward() -> None:
    seen = []

    def note(prompt: str, completion: str) -> float:
        seen.append(prompt)
        return 1.0

    chat, asked = writing(OSLO)
    messages = [SystemMessage("Be kind."), HumanMessage("Where?")]
    chat.invoke(messages, reward=note, answer_schema=City.model_json_schema())
    assert asked[-1].startswith("<|im_start|>system\nBe kind.\n\nAnswer with JSON")
    assert seen
    assert not any("schema" in prompt for prompt in seen)
    with chat.engine() as engine:
        engine.generate(Chat([{"role": "user", "content": "Where?"}], answer_schema={"x-y": 1}))
    assert '{"x-y":1}' in asked[-1]


def test_llamaindex_shows_the_schema_to_the_model() -> None:
    llm, asked = writing(OSLO, llamaindex_stars.StarsLLM)
    said = llm.chat([ChatMessage("Where?")], response_format=City).message.content
    assert City.model_validate_json(said).name == "Oslo"
    assert NAMED in asked[-1]
    llm.chat([ChatMessage("Where?")], response_format=City, describe_schema=False)
    llm.complete("Where?", response_format=City, describe_schema=False)
    assert NAMED not in asked[-1]


@pytest.mark.parametrize(
    ("schema", "written", "expected"),
    [
        (Mood, '"down"', Mood.BAD),
        (Number, "10", Number.TEN),
        (list[int], "[1, 2]", [1, 2]),
        (dict[str, Mood], '{"a": "up"}', {"a": Mood.GOOD}),
        (list[Decimal], "[1.50]", [Decimal("1.5")]),
        (Price, '{"amount": 1.50}', Price(amount=Decimal("1.5"))),
        (Node, '{"value": 1, "kids": [{"value": 2, "kids": []}]}', None),
        (float, "1.5", 1.5),
        (bool, "true", True),
        (date, '"2024-05-06"', date(2024, 5, 6)),
        (Name, '"Oslo"', "Oslo"),
        (Place, '{"name": "Oslo"}', {"name": "Oslo"}),
    ],
)
def test_values_of_any_type_come_back(schema: Any, written: str, expected: Any) -> None:
    chat, _ = writing(written)
    made = chat.with_structured_output(schema)
    value = made.invoke("Which?")
    assert value == (Node(value=1, kids=[Node(value=2)]) if expected is None else expected)
    raw = chat.with_structured_output(schema, include_raw=True).invoke("Which?")
    assert raw["parsed"] == value
    assert list(made.stream("Which?"))[-1] == value


class Task(BaseModel):
    run: Callable[[int], int]


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_fields_without_a_json_form_are_refused_by_name(method: Any) -> None:
    chat, asked = writing("{}")
    with pytest.raises(ConfigError, match="/run: the type has no JSON form"):
        chat.with_structured_output(Task, method=method).invoke("Which?")
    assert not any("Which?" in text for text in asked)


async def test_streams_report_what_cannot_be_parsed() -> None:
    """LangChain's own composition raises, because the raw message precedes the error."""
    for max_tokens, expected in ((4, None), (64, City(name="Oslo"))):
        model = writing(OSLO)[0].with_structured_output(
            City, include_raw=True, max_tokens=max_tokens
        )
        found = [answer async for answer in model.astream("Where?")]
        for parts in (list(model.stream("Where?")), found):
            whole = parts[0]
            for part in parts[1:]:
                whole = whole + part
            assert list(whole) == ["raw", "parsed", "parsing_error"]
            assert whole["parsed"] == expected
            assert isinstance(whole["parsing_error"], OutputParserException) == (expected is None)
            assert OSLO.startswith(whole["raw"].text)


class Large(BaseModel):
    """Its validator is no part of its schema."""

    size: int

    @field_validator("size")
    @classmethod
    def _is_large(cls, size: int) -> int:
        assert size > 5
        return size


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("is_whole", [False, True])
def test_streams_validate_like_whole_answers(method: Any, is_whole: bool) -> None:
    """LangChain's parsers ignore errors in streams, and tool calls of whole messages."""

    def model(size: int, **given: Any) -> Any:
        answer = f'{{"size": {size}}}'
        if method == "function_calling":
            answer = f'<tool_call>\n{{"name": "Large", "arguments": {answer}}}\n</tool_call>'
        chat = writing(answer)[0].model_copy(update={"disable_streaming": is_whole})
        return chat.with_structured_output(Large, method=method, **given)

    assert list(model(9).stream("How?")) == [Large(size=9)]
    for ask in (model(3).invoke, lambda asked: list(model(3).stream(asked))):
        with pytest.raises(ValueError, match="assertion_error"):
            ask("How?")
    [*_, last] = model(3, include_raw=True).stream("How?")
    assert "assertion_error" in str(last["parsing_error"])


def test_an_answer_with_tools_and_a_schema_is_refused() -> None:
    agent = create_agent(writing(OSLO)[0], [str.upper], response_format=ProviderStrategy(City))
    with pytest.raises(ConfigError, match=r"response_format: .*Hint: .*ToolStrategy"):
        agent.invoke({"messages": [("user", "Where?")]})


def test_enums_need_a_method_without_calls() -> None:
    chat, _ = writing('"up"')
    with pytest.raises(ValueError, match="needs the schema of an object"):
        chat.with_structured_output(Mood, method="function_calling")
    made = ChatStars(max_tokens=4).with_structured_output(Mood)
    for kept in (made, ChatStars().with_structured_output(Mood, include_raw=True)):
        pickle.loads(pickle.dumps(kept))
    with pytest.raises(OutputParserException, match="not valid"):
        made.steps[-1].parse('"sideways"')


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_types_of_objects_come_back_from_each_method(method: Any) -> None:
    for schema, value in ((City | Large, Large(size=9)), (dict[str, Large], {"a": Large(size=9)})):
        answer = json.dumps(TypeAdapter(schema).dump_python(value, mode="json"))
        if method == "function_calling":
            answer = f'{{"name": "{getattr(schema, "__name__", "answer")}", "arguments": {answer}}}'
            answer = f"<tool_call>\n{answer}\n</tool_call>"
        chat = writing(answer)[0]
        assert chat.with_structured_output(schema, method=method).invoke("How?") == value


def test_llamaindex_predicts_decimals_and_recursive_models() -> None:
    for schema, arguments in ((Price, '{"amount": 1.50}'), (Node, '{"value": 1, "kids": []}')):
        call = f'{{"name": "{schema.__name__}", "arguments": {arguments}}}'
        llm, _ = writing(f"<tool_call>\n{call}\n</tool_call>", llamaindex_stars.StarsLLM)
        made = llm.structured_predict(schema, PromptTemplate("Which?"))
        assert made == schema.model_validate_json(arguments)


@pytest.mark.slow
def test_a_custom_tokenizer_counts() -> None:
    for kind in (ChatStars, StarsLLM):
        llm = kind(custom_get_token_ids=lambda text: list(range(len(text))))
        assert llm.get_num_tokens("four") == 4
    assert kind().get_num_tokens("four") != 4
    chat = ChatStars(custom_get_token_ids=lambda text: [1])
    assert chat.get_num_tokens_from_messages([HumanMessage("a"), HumanMessage("b")]) == 2

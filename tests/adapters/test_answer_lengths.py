"""How long answers to conversations may be, and what becomes of calls that a limit cuts off."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool

import llamaindex_stars
from langchain_stars import ChatStars, StarsLLM
from stars_engine import (
    AutoSchedule,
    CalibratedSchedule,
    NoSchedule,
    SamplingParams,
    StarsConfig,
)
from stars_engine.config.root import embedded_align
from stars_engine.integrations import chat_sampling
from tests.support.scripted import scripted

pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step"),
]

LONG = "word " * 100
NOTE = '<tool_call>\n{"name": "note", "arguments": {"text": "' + LONG + '"}}\n</tool_call>'


@tool
def note(text: str) -> str:
    """Keeps a note."""
    return "kept"


def judge(prompt: str, completion: str) -> float:
    return 1.0


def settings(answer: str) -> dict[str, Any]:
    return {"model": scripted(lambda _: answer), "reward": judge, "schedule": {"kind": "none"}}


def config(**given: Any) -> StarsConfig:
    return StarsConfig(model="a/b", reward=judge, **given)


def test_the_default_is_what_is_left_of_the_context() -> None:
    plain = SamplingParams()
    none = config(align={"schedule": NoSchedule()})
    longer = chat_sampling(plain, none)
    assert (longer.max_tokens, longer.on_overflow) == (1024, "clamp")
    assert chat_sampling(SamplingParams(max_tokens=128), none).max_tokens == 128
    assert chat_sampling(SamplingParams(min_tokens=5, on_overflow="raise"), none) == (
        SamplingParams(min_tokens=5, on_overflow="raise", max_tokens=1024)
    )
    assert chat_sampling(plain, StarsConfig()) == plain  # the embedded pair continues text
    assert chat_sampling(plain, config(align={"schedule": AutoSchedule()})).max_tokens == 512
    calibrated = embedded_align().schedule
    assert isinstance(calibrated, CalibratedSchedule)
    calibrated = calibrated.replace(made_for={"pilot": {"max_tokens": 100}})
    assert chat_sampling(plain, config(align={"schedule": calibrated})).max_tokens == 200


def test_langchain_answers_are_not_cut_at_128_tokens() -> None:
    chat = ChatStars(**settings(LONG), segment_len=64)
    assert chat.settings().sampling.max_tokens == 1024
    assert chat.invoke("Tell me.").text.strip() == LONG.strip()
    chat = ChatStars(**settings("x"), config=StarsConfig(sampling="model"))
    assert chat.invoke("Hi").text == "x"
    assert StarsLLM(**settings("x")).settings().sampling.max_tokens == 128


@pytest.mark.parametrize("kind", [ChatStars, llamaindex_stars.StarsLLM])
@pytest.mark.parametrize("sampling", ["model", SamplingParams(seed=1)])
def test_an_unset_limit_reads_as_what_calls_use(kind: Any, sampling: Any) -> None:
    llm = kind(**settings(LONG), config=StarsConfig(sampling=sampling), segment_len=64)
    assert (llm.max_tokens, llm.on_overflow) == (1024, "clamp")
    if kind is ChatStars:
        assert llm.profile["max_output_tokens"] == 1024
        assert llm.invoke("Tell me.").text.strip() == LONG.strip()
    else:
        assert llm.metadata.num_output == 1024
        assert llm.complete("Tell me.").text.strip() == LONG.strip()
    unknown = kind(model="no/such-model", reward=judge, schedule={"kind": "none"})
    assert unknown.max_tokens in (128, 1024)


def test_llamaindex_answers_are_not_cut_at_128_tokens() -> None:
    llm = llamaindex_stars.StarsLLM(**settings(LONG), segment_len=64)
    assert llm.metadata.num_output == 1024
    assert llm.chat([ChatMessage("Tell me.")]).message.content.strip() == LONG.strip()
    assert llm.complete("Tell me.").text.strip() == LONG.strip()
    assert llm.complete("Tell me.", max_tokens=4).raw["finish_reason"] == "length"


def test_a_cut_call_is_invalid_and_warned_of() -> None:
    chat = ChatStars(**settings(NOTE), max_tokens=60).bind_tools([note])
    with pytest.warns(UserWarning, match="cut off by max_tokens after 60 tokens"):
        message = chat.invoke("Note it.")
    assert isinstance(message, AIMessage)
    assert not message.tool_calls
    [call] = message.invalid_tool_calls
    assert "word" in str(call["args"])
    with pytest.warns(UserWarning, match="cut off by max_tokens after 60 tokens"):
        *_, last = chat.stream("Note it.")
    assert json.dumps(last.response_metadata["finish_reason"]) == '"length"'


@pytest.mark.parametrize("streaming", [True, False])
async def test_function_agents_get_an_error_for_a_cut_call(streaming: bool) -> None:
    llm = llamaindex_stars.StarsLLM(**settings(NOTE), max_tokens=60)
    kept = FunctionTool.from_defaults(note.func, name="note")
    agent = FunctionAgent(tools=[kept], llm=llm, streaming=streaming)
    with (
        pytest.warns(UserWarning, match="cut off by max_tokens"),
        pytest.raises(Exception, match="the model produced an invalid tool call"),
    ):
        await agent.run("Note it.")

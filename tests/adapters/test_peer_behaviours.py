"""What the tests of other integrations check: langchain-ollama, -openai, and LlamaIndex's core."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import tool
from llama_index.core import PromptTemplate
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from typing_extensions import TypedDict

import llamaindex_stars
from langchain_stars import ChatStars, StarsLLM
from stars_engine import PromptError
from stars_engine.chat.formats import HERMES
from tests.support.chat_templates import tokenizer_of
from tests.support.scripted import Script, scripted

pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
]
ACTION = 'Thought: I need to add.\nAction: add\nAction Input: {"a": 5, "b": 3}\n'
ANSWER = "Thought: The result is 8.\nAnswer: The sum is 8."


def judge(prompt: str, completion: str) -> float:
    return 1.0


def settings(script: Script, **given: Any) -> dict[str, Any]:
    fields = {"reward": judge, "schedule": {"kind": "none"}, "num_candidates": 1, "seed": 3}
    return {"model": scripted(script), **fields, **given}


@pytest.fixture(scope="module")
def chat() -> ChatStars:
    return ChatStars(**settings(lambda _: "Hello there, my friend.", max_tokens=12))


@tool
def weather(place: str) -> str:
    """Returns the weather."""
    return "sun"


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


# --- LangChain ---


def test_the_usage_of_several_calls_is_combined(chat: ChatStars) -> None:
    said = [[HumanMessage("Hello")], [HumanMessage("Hi")]]
    output = chat.generate(said).llm_output
    assert output is not None
    assert output["model_name"] == chat.model_name
    assert output["token_usage"]["completion_tokens"] == 24
    streamed = chat.model_copy(update={"streaming": True}).generate(said).llm_output
    assert streamed == {"model_name": chat.model_name}


def test_callbacks_get_the_text_of_a_stream(chat: ChatStars) -> None:
    class Handler(BaseCallbackHandler):
        ended: Any = None

        def on_llm_end(self, response: Any, **_: Any) -> None:
            self.ended = response

    handler = Handler()
    chunks = list(chat.stream("Hi", config={"callbacks": [handler]}))
    [[generation]] = handler.ended.generations
    assert generation.text == "".join(chunk.text for chunk in chunks) != ""


def test_messages_of_the_caller_do_not_change(chat: ChatStars) -> None:
    turn = AIMessage(
        [{"type": "text", "text": "Hello"}], response_metadata={"output_version": "v1"}
    )
    messages = [HumanMessage("Hi"), turn, HumanMessage("And?")]
    before = [message.model_copy(deep=True) for message in messages]
    chat.invoke(messages)
    assert messages == before


def test_the_protocol_stream_ends_with_the_message_of_the_chunks() -> None:
    called = HERMES.write([("weather", {"place": "Boston"})])
    asking = ChatStars(**settings(lambda _: called, output_version="v1")).bind_tools([weather])
    total: Any = None
    for chunk in asking.stream("What is the weather?"):
        total = chunk if total is None else total + chunk
    stream = asking.stream_events("What is the weather?", version="v3")
    assert list(stream)
    assert stream.output.tool_calls == total.tool_calls
    blocks = [{k: v for k, v in block.items() if k != "index"} for block in total.content_blocks]
    assert stream.output.content_blocks == blocks
    assert stream.output.response_metadata.keys() == total.response_metadata.keys()


def test_types_that_annotations_name_in_a_function_are_refused() -> None:
    class Inner(TypedDict):
        x: int

    class Outer(TypedDict):
        inner: Inner

    def act(inner: Inner) -> None:
        """Acts."""

    for bind in (lambda: ChatStars().with_structured_output(Outer), lambda: bind_of(act)):
        with pytest.raises(PromptError, match="cannot be resolved: name 'Inner' is not defined"):
            bind()


def bind_of(function: Any) -> Any:
    return ChatStars().bind_tools([function])


# --- LlamaIndex ---


def test_system_and_wrapper_prompts_apply_to_completions() -> None:
    seen: list[str] = []

    def script(conversation: str) -> str:
        seen.append(conversation)
        return "ok"

    given: dict[str, Any] = {
        "system_prompt": "Be brief.",
        "query_wrapper_prompt": PromptTemplate("Q: {query_str}"),
    }
    llm = llamaindex_stars.StarsLLM(**settings(script), **given)
    llm.complete("Why?")
    assert seen[-1] == tokenizer_of("hermes").apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q: Why?"}],
        tokenize=False,
    )
    llm.complete("Why?", prompt_format="raw")
    assert seen[-1].startswith("Be brief.\n\nQ: Why?") or "Be brief." not in seen[-1]
    llm.predict(PromptTemplate("Why?"))
    assert seen[-1].count("Be brief.") == 1


def test_context_window_and_additional_kwargs() -> None:
    given = settings(lambda _: "Hello there.")
    llm = llamaindex_stars.StarsLLM(
        **given, context_window=1_000, additional_kwargs={"max_tokens": 5}
    )
    assert llm.metadata.context_window == 1_000
    assert (llm.max_tokens, llm.complete("Hi").text) == (5, "Hello")
    assert llm.complete("Hi", max_tokens=4).text == "Hell"  # a call overrides both
    assert llm.chat([ChatMessage("Hi")]).message.content == "Hello"
    larger = llamaindex_stars.StarsLLM(**given, context_window=10**9)
    assert larger.metadata.context_window == 16_384
    with pytest.raises(ValueError, match="temprature"):
        llamaindex_stars.StarsLLM(**given, additional_kwargs={"temprature": 1})


@pytest.mark.slow
async def test_a_react_agent_recovers_from_an_answer_in_another_form() -> None:
    def script(conversation: str) -> str:
        if "Observation: 8" in conversation:
            return ANSWER
        return ACTION if "Error while parsing" in conversation else "Thought: add\nAction: add\n{5"

    tools = [FunctionTool.from_defaults(add)]
    agent = ReActAgent(tools=tools, llm=llamaindex_stars.StarsLLM(**settings(script)))
    assert "8" in str(await agent.run("Can you add 5 and 3?"))


@pytest.mark.slow
async def test_agents_hand_off() -> None:
    handoff = HERMES.write([("handoff", {"to_agent": "calculator", "reason": "sums"})])

    def script(conversation: str) -> str:
        if "You retrieve." in conversation:
            return handoff
        return ANSWER if "Observation: 8" in conversation else ACTION

    llm = llamaindex_stars.StarsLLM(**settings(script))
    calculator = ReActAgent(
        name="calculator", description="adds", tools=[FunctionTool.from_defaults(add)], llm=llm
    )
    retriever = FunctionAgent(
        name="retriever", description="finds", system_prompt="You retrieve.", llm=llm
    )
    handler = AgentWorkflow(agents=[calculator, retriever], root_agent="retriever").run("5 + 3?")
    names = {getattr(event, "current_agent_name", None) async for event in handler.stream_events()}
    assert {"retriever", "calculator"} <= names
    assert "8" in str(await handler)


def test_token_counts_of_an_llm_can_be_replaced() -> None:
    llm = StarsLLM(**settings(lambda _: "x"), custom_get_token_ids=lambda _: [1, 2, 3])
    assert llm.get_token_ids("foo") == [1, 2, 3]

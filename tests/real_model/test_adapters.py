"""What the tests of other integrations check, on SmolLM2: langchain-ollama, -openai, -huggingface,
and LlamaIndex's core.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, Literal

import pytest
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.runnables import ConfigurableField
from llama_index.core import Document, PromptTemplate, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.evaluation import FaithfulnessEvaluator
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel
from typing_extensions import TypedDict

import llamaindex_stars
from langchain_stars import ChatStars, StarsLLM
from stars_engine import ChoiceGrammar, ConfigError, PromptError
from tests.support.smollm2 import smollm2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.smollm2,
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step"),
]
ASKED = "What is the capital of France?"
PARIS = "The capital of France is Paris."
Check = Callable[[Any], object]


def judge(prompt: str, completion: str) -> float:
    return float(-completion.count("e"))


def settings(**given: Any) -> dict[str, Any]:
    thresholds = {"kind": "constant", "value": -20.0}
    fixed = {"schedule": thresholds, "num_candidates": 1, "temperature": 0.1, "seed": 3}
    return {"model": str(smollm2()), "reward": judge, "max_tokens": 12, **fixed, **given}


@pytest.fixture(scope="module")
def chat() -> ChatStars:
    return ChatStars(**settings())


@pytest.fixture(scope="module")
def llm() -> StarsLLM:
    return StarsLLM(**settings())


@pytest.fixture(scope="module")
def index() -> llamaindex_stars.StarsLLM:
    return llamaindex_stars.StarsLLM(**settings())


def rate(stars: Literal[1, 2, 3]) -> str:
    """Rates a film."""
    return f"rated {stars}"


def now() -> str:
    """Returns the time."""
    return "noon"


class Rating(BaseModel):
    """The rating of a film."""

    stars: Literal[1, 2, 3]
    good: bool


class Typed(TypedDict):
    stars: Literal[1, 2, 3]


def total(chunks: Any) -> Any:
    whole: Any = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


# --- LangChain's chat model ---


def tokens_for_callbacks(chat: ChatStars) -> object:
    class Handler(BaseCallbackHandler):
        text = ""

        def on_llm_new_token(self, token: str, **_: Any) -> None:
            self.text += token

    handler = Handler()
    list(chat.stream(ASKED, config={"callbacks": [handler]}))
    return handler.text == PARIS


def usage_in_total(chat: ChatStars) -> object:
    with get_usage_metadata_callback() as counted:
        message = chat.invoke(ASKED)
        list(chat.stream(ASKED))
    [usage] = counted.usage_metadata.values()
    return usage["output_tokens"] == 2 * message.usage_metadata["output_tokens"]  # type: ignore[index]


def usage_in_the_last_chunk(chat: ChatStars) -> object:
    used = [bool(chunk.usage_metadata) for chunk in chat.stream(ASKED)]
    return sum(used) == 1


def a_result_of_a_tool(chat: ChatStars) -> object:
    call = {"name": "now", "args": {}, "id": "1", "type": "tool_call"}
    said = [HumanMessage("What time is it?"), AIMessage("", tool_calls=[call])]
    model = chat.bind_tools([now], tool_choice="none")
    return model.invoke([*said, ToolMessage("noon", tool_call_id="1")]).text


def streamed_call(chat: ChatStars) -> object:
    message = total(chat.bind_tools([rate], tool_choice="rate", max_tokens=40).stream("Rate it."))
    return message.tool_calls[0]["args"]["stars"] in (1, 2, 3)


def refused(error: type[Exception], call: Callable[[], object]) -> object:
    with pytest.raises(error):
        call()
    return True


async def in_events(chat: ChatStars) -> object:
    events = [event async for event in chat.astream_events(ASKED, version="v2")]
    return events[-1]["data"]["output"].text == PARIS


async def at_once(chat: ChatStars) -> object:
    answers = await asyncio.gather(*(chat.ainvoke(ASKED) for _ in range(3)))
    return [answer.text for answer in answers] == [PARIS] * 3


async def astreamed(chat: ChatStars) -> object:
    return "".join([chunk.text async for chunk in chat.astream(ASKED)]) == PARIS


async def ainvoked(chat: ChatStars) -> object:
    return (await chat.ainvoke(ASKED)).text == PARIS


async def abatched(chat: ChatStars) -> object:
    return [answer.text for answer in await chat.abatch([ASKED, ASKED])] == [PARIS] * 2


def forced(**given: Any) -> Check:
    return lambda chat: [
        call["name"] for call in chat.bind_tools([rate, now], **given).invoke("Rate it.").tool_calls
    ]


def structured(schema: Any, kind: type, **given: Any) -> Check:
    def check(chat: ChatStars) -> object:
        model = chat.with_structured_output(schema, compact=True, max_tokens=40, **given)
        [*_, last] = model.stream("It was fine. Rate it.")
        return isinstance(model.invoke("It was fine. Rate it."), kind) and isinstance(last, kind)

    return check


CHAT: dict[str, Check] = {
    "invoke": lambda chat: chat.invoke(ASKED).text == PARIS,
    "ainvoke": ainvoked,
    "stream": lambda chat: "".join(part.text for part in chat.stream(ASKED)) == PARIS,
    "astream": astreamed,
    "astream_events": in_events,
    "batch": lambda chat: [one.text for one in chat.batch([ASKED] * 2)] == [PARIS] * 2,
    "abatch": abatched,
    "concurrent calls": at_once,
    "a system message": lambda chat: chat.invoke(
        [SystemMessage("Be brief."), HumanMessage(ASKED)]
    ).text.strip(),
    "several turns": lambda chat: (
        "Paris" in chat.invoke([("user", "Hi"), ("ai", "Yes?"), ("user", ASKED)]).text
    ),
    "text in blocks": lambda chat: (
        chat.invoke([HumanMessage([{"type": "text", "text": ASKED}])]).text == PARIS
    ),
    "stop": lambda chat: chat.invoke(ASKED, stop=[" Paris"]).text == "The capital of France is",
    "stop in streams": lambda chat: (
        total(chat.bind(stop=["Paris"]).stream(ASKED)).text == "The capital of France is "
    ),
    "max_tokens": lambda chat: (
        chat.invoke(ASKED, max_tokens=3).response_metadata["finish_reason"] == "length"
    ),
    "finish_reason": lambda chat: chat.invoke(ASKED).response_metadata["finish_reason"] == "stop",
    "usage": lambda chat: chat.invoke(ASKED).usage_metadata["input_tokens"] > 10,
    "usage of streams": usage_in_the_last_chunk,
    "usage callback": usage_in_total,
    "callbacks": tokens_for_callbacks,
    "a seed": lambda chat: (
        len({chat.invoke("Hi", temperature=1.0, seed=5).text for _ in range(2)}) == 1
    ),
    "count of tokens": lambda chat: chat.get_num_tokens(PARIS) == 7,
    "configurable fields": lambda chat: (
        chat.configurable_fields(max_tokens=ConfigurableField(id="size"))
        .with_config(configurable={"size": 2})
        .invoke(ASKED)
        .usage_metadata["output_tokens"]
        == 2
    ),
    "continued message": lambda chat: (
        chat.invoke([("user", ASKED), ("ai", "It is")], continue_final_message=True).text
    ),
    "any tool": forced(tool_choice="any", max_tokens=60, parallel_tool_calls=False),
    "one tool": lambda chat: forced(tool_choice="now", max_tokens=40)(chat) == ["now"],
    "no tool": lambda chat: forced(tool_choice="none")(chat) == [],
    "streamed call": streamed_call,
    "result of a tool": a_result_of_a_tool,
    "json_schema": structured(Rating, Rating),
    "function_calling": structured(Rating, Rating, method="function_calling"),
    "json_mode": structured(Rating.model_json_schema(), dict, method="json_mode"),
    "TypedDict": structured(Typed, dict),
    "logprobs are refused": lambda chat: refused(
        ConfigError, lambda: chat.invoke(ASKED, logprobs=True)
    ),
    "images are refused": lambda chat: refused(
        ValueError,
        lambda: chat.invoke([HumanMessage([{"type": "image", "url": "https://localhost/a"}])]),
    ),
}

# --- LangChain's LLM ---


async def llm_astreamed(llm: StarsLLM) -> object:
    return "".join([part async for part in llm.astream(ASKED)]) == PARIS


LLM: dict[str, Check] = {
    "invoke": lambda llm: llm.invoke(ASKED) == PARIS,
    "batch": lambda llm: llm.batch([ASKED, ASKED]) == [PARIS] * 2,
    "stream": lambda llm: "".join(llm.stream(ASKED)) == PARIS,
    "astream": llm_astreamed,
    "messages": lambda llm: llm.invoke([HumanMessage(ASKED)]) == PARIS,
    "stop": lambda llm: llm.invoke(ASKED, stop=[" Paris"]) == "The capital of France is",
}

# --- LlamaIndex ---

PROMPT = PromptTemplate("What is the capital of {country}?")
MESSAGES = [ChatMessage(ASKED)]
TOOL = FunctionTool.from_defaults(rate)


async def achats(index: llamaindex_stars.StarsLLM) -> object:
    streamed = [part async for part in await index.astream_chat(MESSAGES)]
    said = [(await index.achat(MESSAGES)).message.content, streamed[-1].message.content]
    return said == [PARIS] * 2


async def acompletes(index: llamaindex_stars.StarsLLM) -> object:
    streamed = [part async for part in await index.astream_complete(ASKED)]
    return [(await index.acomplete(ASKED)).text, streamed[-1].text] == [PARIS] * 2


def calls(index: llamaindex_stars.StarsLLM) -> object:
    response = index.chat_with_tools([TOOL], "Rate it.", tool_required=True, max_tokens=40)
    [call] = index.get_tool_calls_from_response(response)
    [*_, last] = index.stream_chat_with_tools([TOOL], "Rate it.", tool_required=True, max_tokens=40)
    assert index.get_tool_calls_from_response(last)[0].tool_name == "rate"
    return call.tool_kwargs["stars"] in (1, 2, 3)


def predicts(index: llamaindex_stars.StarsLLM) -> object:
    prompt, given = PromptTemplate("It was fine. Rate it."), {"max_tokens": 60}
    [*_, last] = index.stream_structured_predict(Rating, prompt, llm_kwargs=given)
    assert isinstance(last, Rating)
    made = index.structured_predict(Rating, prompt, llm_kwargs=given)
    return isinstance(made, Rating)


async def function_agent(index: llamaindex_stars.StarsLLM) -> object:
    longer = index.model_copy(update={"max_tokens": 100})
    agent = FunctionAgent(
        tools=[TOOL], llm=longer, initial_tool_choice="rate", allow_parallel_tool_calls=False
    )
    result = await agent.run("Rate it.", max_iterations=2, early_stopping_method="generate")
    return result.tool_calls[0].tool_output.content.startswith("rated")


def query_engine(index: llamaindex_stars.StarsLLM) -> object:
    documents = SummaryIndex([], llm=index).from_documents([Document(text="The sea is green.")])
    engine = documents.as_query_engine(llm=index, streaming=True)
    return "".join(engine.query("What color is the sea?").response_gen).strip()


def remembers(index: llamaindex_stars.StarsLLM) -> object:
    engine = SimpleChatEngine.from_defaults(llm=index)
    engine.chat("Hi")
    assert "".join(engine.stream_chat(ASKED).response_gen)
    return [turn.role for turn in engine.chat_history][::2] == [MessageRole.USER] * 2


def judges(index: llamaindex_stars.StarsLLM) -> object:
    evaluator = FaithfulnessEvaluator(
        llm=index.model_copy(update={"grammar": ChoiceGrammar(choices=["YES", "NO"])})
    )
    found = evaluator.evaluate(query="q", response="It is green.", contexts=["The sea is green."])
    return found.feedback in ("YES", "NO")


INDEX: dict[str, Check] = {
    "complete": lambda index: index.complete(ASKED).text == PARIS,
    "stream_complete": lambda index: (
        "".join(part.delta for part in index.stream_complete(ASKED)) == PARIS
    ),
    "chat": lambda index: index.chat(MESSAGES).message.content == PARIS,
    "stream_chat": lambda index: (
        "".join(part.delta for part in index.stream_chat(MESSAGES)) == PARIS
    ),
    "achat": achats,
    "acomplete": acompletes,
    "predict": lambda index: index.predict(PROMPT, country="France") == PARIS,
    "stream": lambda index: "".join(index.stream(PROMPT, country="France")) == PARIS,
    "metadata": lambda index: index.metadata.is_chat_model and index.metadata.context_window,
    "usage": lambda index: index.chat(MESSAGES).additional_kwargs["completion_tokens"] == 8,
    "stop": lambda index: index.complete(ASKED, stop=[" Paris"]).text == PARIS[:24],
    "tool calls": calls,
    "structured prediction": predicts,
    "an agent with a tool": function_agent,
    "a query engine": query_engine,
    "a chat engine": remembers,
    "an evaluator": judges,
    "images are refused": lambda index: refused(
        PromptError,
        lambda: index.chat([ChatMessage(role="user", blocks=[ImageBlock(image=b"x")])]),
    ),
}


def sampled(checks: dict[str, Check], *few: str) -> list[str]:
    """Return the names of all checks in `make test-real-model`, and of a few elsewhere."""
    return list(checks) if os.environ.get("STARS_REAL_MODEL") == "all" else list(few)


async def holds(check: Check, adapter: Any) -> None:
    found = check(adapter)
    assert await found if asyncio.iscoroutine(found) else found


@pytest.mark.parametrize(
    "name", sampled(CHAT, "stream", "usage callback", "one tool", "json_schema")
)
async def test_chat_models(name: str, chat: ChatStars) -> None:
    await holds(CHAT[name], chat)


@pytest.mark.parametrize("name", sampled(LLM, "stop"))
async def test_llms(name: str, llm: StarsLLM) -> None:
    await holds(LLM[name], llm)


@pytest.mark.parametrize("name", sampled(INDEX, "stream_chat", "tool calls"))
async def test_llamaindex(name: str, index: llamaindex_stars.StarsLLM) -> None:
    await holds(INDEX[name], index)

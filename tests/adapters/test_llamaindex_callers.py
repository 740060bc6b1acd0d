"""All callers in LlamaIndex: how many requests and tokens each needs."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from llama_index.core import PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.extractors import SummaryExtractor
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.rate_limiter import TokenBucketRateLimiter
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from pydantic import BaseModel, Field

from llamaindex_stars import StarsLLM
from llamaindex_stars.prompts import read_message
from stars_engine import (
    AlignmentError,
    ConfigError,
    ContextOverflowError,
    Message,
    PromptError,
    StarsConfig,
    TransformersModel,
)
from stars_engine.chat.turns import turns_of
from tests.support.chat_templates import tokenizer_of
from tests.support.event_loops import LoopTicker
from tests.support.scripted import CLOSING, NEVER, random_chat_model, scripted

# What LlamaIndex's workflows ask of pydantic models.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step"),
]


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


class Letters(BaseEmbedding):
    """Counts letters."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return [1.0 + text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=8)
    size: int = Field(ge=0, le=9)


def judge(prompt: str, completion: str) -> float:
    return 1.0 + len(completion) % 3


def of(model: TransformersModel, **given: Any) -> StarsLLM:
    fields = {"schedule": {"kind": "none"}, "segment_len": 8, "max_tokens": 24, "num_candidates": 4}
    return StarsLLM(model=model, reward=judge, **({"seed": 0} | fields | given))


@pytest.fixture(scope="module")
def random_llm() -> Iterator[Callable[..., StarsLLM]]:
    model = random_chat_model()
    kept = of(model).load()
    yield lambda **given: of(model, **given)
    kept.close()


def saying(script: Callable[[str], str], **fields: Any) -> StarsLLM:
    return of(scripted(script), max_tokens=200, num_candidates=4, **fields)


class Asked(BaseEventHandler):
    """Records the requests of LlamaIndex and their tokens."""

    chats: list[LLMChatStartEvent] = Field(default_factory=list)
    bare: list[LLMCompletionStartEvent] = Field(default_factory=list)
    num_tokens: list[int] = Field(default_factory=list)

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, LLMChatStartEvent):
            self.chats.append(event)
        elif isinstance(event, LLMCompletionStartEvent):
            self.bare.append(event)
        elif isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent):
            assert event.response is not None
            self.num_tokens.append(event.response.raw["usage"]["prompt_tokens"])


@contextmanager
def asks(llm: StarsLLM, num_requests: int) -> Iterator[None]:
    """Check the number of requests, and that prompts are rendered by the model's template."""
    asked, dispatcher = Asked(), get_dispatcher()
    dispatcher.add_event_handler(asked)
    before = num_ended(llm)
    try:
        yield
    finally:
        dispatcher.event_handlers.remove(asked)
    assert num_ended(llm) - before == num_requests
    tokenizer = tokenizer_of("hermes")
    expected = []
    for event in (*asked.chats, *asked.bare):
        if isinstance(event, LLMChatStartEvent):
            turns = turns_of([read_message(message) for message in event.messages])
            tools = event.additional_kwargs.get("tools")
        else:
            turns, tools = turns_of([Message(role="user", content=event.prompt)]), None
        ids = tokenizer.apply_chat_template(
            turns, tools=tools or None, add_generation_prompt=True, return_dict=False
        )
        expected.append(len(ids))
    assert len(expected) == num_requests
    assert sorted(expected) == sorted(asked.num_tokens)


def num_ended(llm: StarsLLM) -> int:
    stats = llm.engine().stats()
    return stats.num_finished + stats.num_failed + stats.num_cancelled


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    # All texts have the same letters: ids break the tie. Random ids would change the prompts.
    nodes = [TextNode(id_=f"{i}", text=f"City number {i} has {i} towers.") for i in range(6)]
    return VectorStoreIndex(nodes, embed_model=Letters())


# --- query and chat engines ---


@pytest.mark.parametrize("mode", ["compact", "refine", "tree_summarize", "simple_summarize"])
def test_queries(random_llm: Callable[..., StarsLLM], index: VectorStoreIndex, mode: Any) -> None:
    llm = random_llm()
    engine = index.as_query_engine(llm=llm, response_mode=mode, similarity_top_k=2)
    with asks(llm, 2 if mode == "refine" else 1):  # one more for each further document
        response = engine.query("How many towers?")
    assert str(response)
    assert len(response.source_nodes) == 2


@pytest.mark.slow
async def test_async_queries_never_block_and_share_steps(
    random_llm: Callable[..., StarsLLM], index: VectorStoreIndex
) -> None:
    llm = random_llm()
    engine = index.as_query_engine(llm=llm, similarity_top_k=1)
    before = llm.engine().stats()
    async with LoopTicker() as ticks:
        alone = str(await engine.aquery("How many towers?"))
        assert ticks.count > 3
    steps_alone = llm.engine().stats().num_steps - before.num_steps
    middle = llm.engine().stats().num_steps
    answers = await asyncio.gather(*[engine.aquery("How many towers?") for _ in range(8)])
    assert {str(answer) for answer in answers} == {alone}
    assert llm.engine().stats().num_steps - middle < 4 * steps_alone
    streaming = index.as_query_engine(llm=llm, similarity_top_k=1, streaming=True)
    with asks(llm, 1):
        assert "".join(streaming.query("How many towers?").response_gen) == alone
    with asks(llm, 1):
        response: Any = await streaming.aquery("How many towers?")
        assert "".join([piece async for piece in response.async_response_gen()]) == alone


def test_the_second_turn_of_a_chat_engine(index: VectorStoreIndex) -> None:
    """The question is condensed by `complete`, which is a user turn here."""
    seen: list[str] = []

    def script(conversation: str) -> str:
        seen.append(conversation)
        return "How tall are they?" if "standalone" in conversation.lower() else "Two."

    llm = saying(script)
    engine = index.as_chat_engine(
        chat_mode="condense_plus_context",
        llm=llm,
        memory=ChatMemoryBuffer.from_defaults(token_limit=4_000, tokenizer_fn=llm.tokenizer_fn),
    )
    llm.load()
    seen.clear()  # what the decoders were tried on
    assert str(engine.chat("How many towers?")) == "Two."
    with asks(llm, 2):  # the question, then the answer
        engine.chat("And how tall?")
    assert all("<|im_start|>user" in conversation for conversation in seen)
    assert not any("user: <|im_start|>" in conversation for conversation in seen)


# --- structured output, tools ---


def check_growth(made: list[Any], found: BaseModel) -> None:
    """Check that partial objects only gain parts of the complete one, which is the last."""
    *partial, last = made
    assert last == found
    for one in partial:
        known = one.model_dump(exclude_none=True).items()
        assert all(str(getattr(found, name)).startswith(str(value)) for name, value in known)


@pytest.mark.slow
def test_structured_prediction(random_llm: Callable[..., StarsLLM]) -> None:
    llm = random_llm(max_tokens=200, logit_bias=CLOSING)
    prompt = PromptTemplate("Name a city near {place}.")
    with asks(llm, 1):
        assert isinstance(llm.structured_predict(City, prompt, place="Oslo"), City)
    found = asyncio.run(llm.astructured_predict(City, prompt, place="Oslo"))
    assert isinstance(found, City)
    check_growth(list(llm.stream_structured_predict(City, prompt, place="Oslo")), found)

    async def streamed() -> list[Any]:
        stream = await llm.astream_structured_predict(City, prompt, place="Oslo")
        return [made async for made in stream]

    check_growth(asyncio.run(streamed()), found)
    response = llm.as_structured_llm(City).complete("Name a city.")
    assert isinstance(response.raw, City)


def temperature(city: str) -> str:
    """Tells how warm a city is."""
    return f"{city} has 7 degrees"


@pytest.mark.slow
def test_forced_calls_do_not_change_the_history(random_llm: Callable[..., StarsLLM]) -> None:
    llm = random_llm(max_tokens=200, logit_bias=CLOSING)
    tool = FunctionTool.from_defaults(temperature)
    history = [ChatMessage("Hello"), ChatMessage("Hi", role=MessageRole.ASSISTANT)]
    response = llm.chat_with_tools(
        [tool], user_msg="How warm?", chat_history=history, tool_required=True
    )
    assert len(history) == 2
    [call] = llm.get_tool_calls_from_response(response)
    assert call.tool_name == "temperature"
    assert set(call.tool_kwargs) == {"city"}
    *_, last = llm.stream_chat_with_tools(
        [tool], user_msg="How warm?", chat_history=history, tool_required=True
    )
    assert llm.get_tool_calls_from_response(last)[0].tool_kwargs == call.tool_kwargs
    with pytest.raises(ValueError, match="has no tool call"):
        llm.get_tool_calls_from_response(llm.chat([ChatMessage("Hello")]))
    assert "7 degrees" in str(
        llm.predict_and_call([tool], user_msg="How warm?", tool_required=True)
    )


def agent_script(conversation: str) -> str:
    if "7 degrees" in conversation.rpartition("<|im_start|>user")[2]:
        return "It has 7 degrees."
    call = json.dumps({"name": "temperature", "arguments": {"city": "Oslo"}})
    return f"<tool_call>\n{call}\n</tool_call>"


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False])
async def test_function_agents_and_workflows_of_them(streaming: bool) -> None:
    llm = saying(agent_script)
    agent = FunctionAgent(
        name="warmth", description="d", tools=[temperature], llm=llm, streaming=streaming
    )
    with asks(llm, 2):
        async with LoopTicker() as ticks:
            assert str(await agent.run("How warm is Oslo?")) == "It has 7 degrees."
            assert ticks.count > 3
    flow = AgentWorkflow(agents=[agent], root_agent="warmth")
    with asks(llm, 2):
        assert str(await flow.run("How warm is Oslo?")) == "It has 7 degrees."


@pytest.mark.slow
async def test_react_agents() -> None:
    def script(conversation: str) -> str:
        if "Observation:" in conversation.rpartition("<|im_start|>user")[2]:
            return "Thought: I can answer without using any more tools.\nAnswer: 7 degrees."
        call = 'Action: temperature\nAction Input: {"city": "Oslo"}'
        return f"Thought: I need to use a tool.\n{call}"

    llm = saying(script)
    agent = ReActAgent(tools=[temperature], llm=llm)
    with asks(llm, 2):
        assert str(await agent.run("How warm is Oslo?")) == "7 degrees."


# --- accounts, events, limits ---


@pytest.mark.parametrize("way", ["complete", "chat", "acomplete", "achat", "predict"])
def test_each_call_is_counted_once(random_llm: Callable[..., StarsLLM], way: str) -> None:
    counter = TokenCountingHandler(tokenizer=random_llm().tokenizer_fn)
    takes: list[float] = []

    class Limiter(TokenBucketRateLimiter):
        def acquire(self, num_tokens: int = 0) -> None:
            takes.append(0)

        async def async_acquire(self, num_tokens: int = 0) -> None:
            takes.append(0)

    llm = random_llm(
        callback_manager=CallbackManager([counter]), rate_limiter=Limiter(requests_per_minute=600)
    )
    asked: Any = "Hello" if "complete" in way else [ChatMessage("Hello")]
    asked = PromptTemplate("Hello") if way == "predict" else asked
    response = getattr(llm, way)(asked)
    if way.startswith("a"):
        response = asyncio.run(response)
    assert len(takes) == 1
    assert len(counter.llm_token_counts) == 1
    if way != "predict":
        usage = response.additional_kwargs
        [count] = counter.llm_token_counts
        assert (count.prompt_token_count, count.completion_token_count) == (
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )


def test_events_carry_the_trace(random_llm: Callable[..., StarsLLM]) -> None:
    class Notes(BaseEventHandler):
        ended: list[Any] = []  # noqa: RUF012 - a pydantic field

        def handle(self, event: Any, **_: Any) -> None:
            if isinstance(event, LLMChatEndEvent):
                self.ended.append(event)

    notes, dispatcher = Notes(), get_dispatcher()
    dispatcher.add_event_handler(notes)
    try:
        response = random_llm(trace=True).chat([ChatMessage("Hello")])
    finally:
        dispatcher.event_handlers.remove(notes)
    [event] = notes.ended
    assert event.response.raw["segments"] == response.raw["segments"]
    json.dumps(response.raw)
    json.dumps(response.additional_kwargs)


def test_answers_may_fill_the_context(random_llm: Callable[..., StarsLLM]) -> None:
    llm = random_llm(max_tokens=8_000)
    context = llm.metadata.context_window
    long = "x" * (context - 60)
    response = llm.complete(long)
    assert response.additional_kwargs["total_tokens"] == context
    with pytest.raises(ContextOverflowError):
        llm.complete("x" * context)
    with pytest.raises(ContextOverflowError):
        random_llm(max_tokens=8_000, on_overflow="raise").complete(long)


@pytest.mark.slow
def test_copies_through_plain_values() -> None:
    llm = StarsLLM(max_tokens=8, seed=4, temperature=0.5)
    stated = llm.to_dict()
    assert "sampling" not in stated["config"]  # what nobody gave
    for again in (StarsLLM.from_dict(stated), pickle.loads(pickle.dumps(llm))):
        assert again.settings() == llm.settings()
        assert again.complete("This movie").text == llm.complete("This movie").text
    llm.close()


def test_copies_elsewhere_name_the_objects_that_they_lack(
    random_llm: Callable[..., StarsLLM],
) -> None:
    llm = StarsLLM(model="stars:embedded-lm", reward=lambda p, c: -1.0, schedule={"kind": "none"})
    given = {"model": "stars:embedded-lm", "align": {"schedule": {"kind": "none"}}}
    whole = StarsLLM(config=StarsConfig(reward=lambda p, c: -1.0, **given))
    for made, name in ((llm, "reward"), (whole, "config")):
        # As LlamaIndex pickles the components of a pipeline: what fails to pickle is dropped.
        extractor = SummaryExtractor(llm=made, summaries=["self"])
        copied = pickle.loads(pickle.dumps(extractor))
        with pytest.raises(ConfigError, match=rf"{name}: it cannot be pickled.* Hint"):
            copied.llm.complete("This movie")
    assert llm.complete("This movie", max_tokens=4).raw["reward"] == -1.0
    with pytest.raises(ConfigError, match="n=1"):
        random_llm(n=2).complete("Hello")
    llm.close()


def test_custom_prompts_have_no_tools(random_llm: Callable[..., StarsLLM]) -> None:
    llm = random_llm(messages_to_prompt=lambda messages: "x")
    assert not llm.metadata.is_function_calling_model
    assert random_llm().metadata.is_function_calling_model
    with pytest.raises(PromptError, match="pydantic_program_mode"):
        llm.chat([ChatMessage("Hello")], tools=[FunctionTool.from_defaults(temperature)])


def test_the_program_mode_applies_to_streams() -> None:
    llm = saying(lambda _: '{"name": "Oslo", "size": 3}', pydantic_program_mode="llm")
    prompt = PromptTemplate("Name a city near {place}.")
    assert llm.structured_predict(City, prompt, place="x") == City(name="Oslo", size=3)
    [*_, last] = llm.stream_structured_predict(City, prompt, place="x")
    assert City(**last.model_dump()) == City(name="Oslo", size=3)


@pytest.mark.slow
def test_a_call_with_a_model_of_its_own_loads_no_other_model() -> None:
    llm = StarsLLM(model="no/such", reward="no/such", schedule={"kind": "none"}, max_tokens=4)
    given = {"model": "stars:embedded-lm", "reward": judge}
    assert llm.chat([ChatMessage("Hello")], **given).message.content
    assert asyncio.run(llm.achat([ChatMessage("Hello")], **given)).message.content
    llm.close()


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["given", "model"])
def test_the_metadata_leaves_room_for_prompts(index: VectorStoreIndex, sampling: str) -> None:
    config = {"sampling": "model"} if sampling == "model" else {}
    given = {} if sampling == "model" else {"max_tokens": 1_000}
    llm = StarsLLM(config=config, **given)
    assert llm.metadata.num_output <= llm.metadata.context_window // 4
    engine = index.as_query_engine(
        llm=llm,
        similarity_top_k=1,
        response_mode="simple_summarize",
        text_qa_template=PromptTemplate("{context_str} {query_str}"),
    )
    assert str(engine.query("How?"))
    usage = llm.complete("a film " * 225).additional_kwargs  # it may end before
    assert 512 - 128 < usage["prompt_tokens"] < usage["total_tokens"] <= 512
    llm.close()


async def test_a_workflow_branches_on_errors(random_llm: Callable[..., StarsLLM]) -> None:
    class Guarded(Workflow):
        @step
        async def answer(self, event: StartEvent) -> StopEvent:
            llm = random_llm(schedule=NEVER, max_attempts=2, on_exhausted="raise")
            try:
                said = await llm.achat([ChatMessage(event.question)])
            except AlignmentError:
                return StopEvent(result="a person")
            return StopEvent(result=said.message.content)

    assert await Guarded().run(question="How warm?") == "a person"


def test_reasoning_is_separate_from_content() -> None:
    llm = of(scripted(lambda _: "<think>\nWinter.\n</think>\n\nCold.", "thinking"))
    message = llm.chat([ChatMessage("How warm?")]).message
    *_, last = llm.stream_chat([ChatMessage("How warm?")])
    for got in (message, last.message):
        assert got.content == "Cold."
    parts = llm.stream_chat([ChatMessage("How warm?")])
    reasoning = [part.additional_kwargs.get("thinking_delta", "") for part in parts]
    assert "".join(reasoning) == "Winter."
    for got in (message, last.message):
        assert [block.block_type for block in got.blocks] == ["thinking", "text"]
    assert llm.complete("How warm?").text == "Cold."


def test_the_tokenizer_counts_as_the_model_does(random_llm: Callable[..., StarsLLM]) -> None:
    assert len(random_llm().tokenizer_fn("né 🥶")) == len("né 🥶".encode())
    assert Settings.tokenizer is not None
    assert re.fullmatch(r"in memory", random_llm().metadata.model_name)

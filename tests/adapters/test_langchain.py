"""The LangChain adapter: batches, callbacks, binding, identity."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.content import create_plaintext_block, create_text_block
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField

import langchain_stars
from langchain_stars.messages import read_messages
from stars_engine import (
    ConfigError,
    SamplingParams,
    StarsEngine,
)
from tests.support.adapters import FIELDS, PROMPT, SETTINGS

pytestmark = pytest.mark.usefixtures("one_runtime")


@pytest.mark.slow
def test_a_batch_is_one_call_of_the_engine(engine: StarsEngine) -> None:
    llm = langchain_stars.StarsLLM(**FIELDS)
    prompts = [f"Film number {index}" for index in range(16)]
    alone = [llm.invoke(prompt) for prompt in prompts]
    before = llm.engine().stats().num_steps
    assert llm.batch(prompts) == alone
    one_batch = llm.engine().stats().num_steps - before
    longest = max(
        -(-result.usage.num_attempts // 4) + len(result.segments)
        for result in engine.generate(prompts, sampling=SamplingParams(**SETTINGS))
    )
    assert one_batch <= longest


@pytest.mark.slow
def test_langchain_gives_usage_and_trace() -> None:
    llm = langchain_stars.StarsLLM(**FIELDS, n=2, trace=True)
    result = llm.generate([PROMPT, "Another"])
    assert [len(generations) for generations in result.generations] == [2, 2]
    for generations in result.generations:
        for generation in generations:
            info = generation.generation_info
            assert info["usage"]["completion_tokens"] > 0
            assert info["finish_reason"] in ("stop", "length")
            assert "".join(segment["text"] for segment in info["segments"]) == generation.text
    assert result.llm_output["token_usage"]["completion_tokens"] == sum(
        g.generation_info["usage"]["completion_tokens"] for gs in result.generations for g in gs
    )


@pytest.mark.slow
def test_langchain_streams_accepted_segments(expected: str) -> None:
    class Notes(BaseCallbackHandler):
        def __init__(self) -> None:
            self.tokens: list[str] = []
            self.info: dict[str, Any] = {}

        def on_llm_new_token(self, token: str, **_: Any) -> None:
            self.tokens.append(token)

        def on_llm_end(self, response: Any, **_: Any) -> None:
            self.info = response.generations[0][0].generation_info

    notes = Notes()
    llm = langchain_stars.StarsLLM(**FIELDS)
    chunks = list(llm.stream(PROMPT, config={"callbacks": [notes]}))
    assert "".join(chunks) == expected == "".join(notes.tokens)
    assert len(chunks) > 1
    assert notes.info["usage"]["completion_tokens"] == 32
    with pytest.raises(ConfigError, match="n=1"):
        list(llm.stream(PROMPT, n=2))


@pytest.mark.slow
async def test_langchain_async(expected: str) -> None:
    llm = langchain_stars.StarsLLM(**FIELDS)
    assert await llm.ainvoke(PROMPT) == expected
    assert await llm.abatch([PROMPT] * 2) == [expected] * 2
    assert "".join([chunk async for chunk in llm.astream(PROMPT)]) == expected


@pytest.mark.slow
def test_langchain_stop_bind_and_configurable_fields(expected: str) -> None:
    llm = langchain_stars.StarsLLM(max_tokens=32)
    [stopped] = StarsEngine.shared().generate(
        PROMPT, sampling=SamplingParams(**SETTINGS, stop=["movie"])
    )
    assert llm.invoke(PROMPT, stop=["movie"], seed=7) == stopped.text != expected
    assert llm.bind(seed=7).invoke(PROMPT) == expected
    configurable = llm.configurable_fields(seed=ConfigurableField(id="seed"))
    assert configurable.with_config(configurable={"seed": 7}).invoke(PROMPT) == expected
    chain = PromptTemplate.from_template("{who} in this movie") | llm.bind(seed=7)
    assert chain.invoke({"who": "The acting"}) == expected


def test_langchain_identity_depends_on_settings() -> None:
    llm = langchain_stars.StarsLLM(seed=1)
    other = langchain_stars.StarsLLM(seed=1, beta=0.1)
    assert llm._identifying_params != other._identifying_params
    assert llm.asdict()["schedule"] == "calibrated"
    assert len(str(llm.asdict())) < 300  # traces store it for every call
    assert llm.get_num_tokens("The acting") == 2
    assert llm._get_ls_params(stop=["x"])["ls_stop"] == ["x"]


TEXT = "Four \u00bd."
CODED = base64.b64encode(TEXT.encode()).decode()


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (create_plaintext_block(text=TEXT), TEXT),
        (create_plaintext_block(base64=CODED), TEXT),
        (create_plaintext_block(text=TEXT, title="T", context="C"), f"T\nC\n{TEXT}"),
        (create_text_block(TEXT), TEXT),
        ({"type": "input_text", "text": TEXT}, TEXT),
        ({"type": "file", "source_type": "text", "mime_type": "text/plain", "text": TEXT}, TEXT),
        ({"type": "file", "source_type": "base64", "mime_type": "text/csv", "data": CODED}, TEXT),
        (
            {"type": "document", "title": "T", "source": {"type": "text", "data": TEXT}},
            f"T\n{TEXT}",
        ),
        (
            {
                "type": "document",
                "source": {"type": "content", "content": [create_text_block(TEXT)]},
            },
            TEXT,
        ),
        (
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "text/plain", "data": CODED},
            },
            TEXT,
        ),
        (
            {"type": "search_result", "title": "T", "content": [create_text_block(TEXT)]},
            f"T\n{TEXT}",
        ),
        ({"cachePoint": {"type": "default"}}, ""),
        ({"type": "cachePoint", "cachePoint": {"type": "default"}}, ""),
    ],
)
@pytest.mark.parametrize("kind", [HumanMessage, SystemMessage, AIMessage, ToolMessage, ChatMessage])
def test_text_blocks_are_read(block: Any, expected: str, kind: Any) -> None:
    more = {ToolMessage: {"tool_call_id": "1"}, ChatMessage: {"role": "user"}}.get(kind, {})
    [turn] = read_messages([kind(content=["A ", block, " B"], **more)])
    assert turn.content == f"A {expected} B"


@pytest.mark.parametrize(
    "block",
    [
        create_plaintext_block(url="http://localhost/a.txt"),
        create_plaintext_block(file_id="7"),
        create_plaintext_block(base64="no base64!"),
        {"type": "file", "mime_type": "application/pdf", "base64": CODED},
        {"type": "document", "source": {"type": "url", "url": "http://localhost/a"}},
        {"type": "image", "url": "http://localhost/a.png"},
    ],
)
def test_blocks_without_text_are_refused(block: Any) -> None:
    with pytest.raises(ConfigError, match=f"type '{block['type']}'"):
        read_messages([HumanMessage(content=[block])])

"""The LlamaIndex adapter: metadata, streams, chats, templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import (
    CacheControl,
    CachePoint,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
)
from llama_index.core.llms import ChatMessage, TextBlock

import llamaindex_stars
from llamaindex_stars.prompts import read_message
from stars_engine import (
    AlignParams,
    Chat,
    NoSchedule,
    PromptError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TokenIds,
)
from tests.support.adapters import FIELDS, PROMPT, SETTINGS
from tests.support.shared_files import shared_model

pytestmark = pytest.mark.usefixtures("one_runtime")


def test_llamaindex_metadata_is_that_of_the_model() -> None:
    metadata = llamaindex_stars.StarsLLM(**FIELDS).metadata
    assert (metadata.context_window, metadata.num_output) == (512, 32)
    assert not metadata.is_chat_model
    assert metadata.model_name == "stars:embedded-lm"


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """A model with a template, a context and a generation config of its own."""
    model = StarsEngine().model
    model.codec.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model.codec.tokenizer.save_pretrained(tmp_path)
    model.model.config.max_position_embeddings = 300
    model.model.generation_config.update(max_new_tokens=24, do_sample=True, temperature=0.5)
    model.model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("case", ["embedded", "directory", "template", "overridden", "live"])
async def test_llamaindex_metadata_loads_no_weights(case: str, described: Path) -> None:
    """Frameworks read it in event loops; it is what the loaded model says."""
    model: dict[str, Any] = {"name_or_path": str(described)}
    if case == "embedded":
        model = {"name_or_path": "stars:embedded-lm", "dtype": "float32"}  # not what others share
    if case == "template":
        model = {"name_or_path": "stars:embedded-lm", "chat_template": "{{ messages[0].content }}"}
    if case == "overridden":
        model["model_kwargs"] = {"max_position_embeddings": 200}
    if case == "live":
        loaded = StarsEngine().model
        model = {"model": loaded.model, "tokenizer": loaded.codec.tokenizer}
    config = StarsConfig(model=model, reward=lambda prompt, text: 1.0, sampling="model")
    llm = llamaindex_stars.StarsLLM(config=config)
    cold = llm.metadata
    assert llm.engine().is_loaded == (case == "overridden")  # only the loaded model knows
    await llm.aload()
    assert llm.metadata == cold
    expected = {"directory": (300, 24, True), "overridden": (200, 24, True)}
    ours = (512, SamplingParams().max_tokens, case == "template")
    found = (cold.context_window, cold.num_output, cold.is_chat_model)
    assert found == expected.get(case, ours)
    llm.close()


@pytest.mark.slow
def test_llamaindex_usage_streams_and_async(expected: str) -> None:
    llm = llamaindex_stars.StarsLLM(**FIELDS)
    response = llm.complete(PROMPT)
    assert response.text == expected
    assert response.additional_kwargs["completion_tokens"] == 32
    assert "segments" not in response.raw
    traced = llm.complete(PROMPT, trace=True)
    assert "".join(segment["text"] for segment in traced.raw["segments"]) == expected
    parts = list(llm.stream_complete(PROMPT))
    assert "".join(part.delta for part in parts) == expected == parts[-1].text
    assert parts[-1].raw["finish_reason"] == "length"


@pytest.mark.slow
async def test_llamaindex_async(expected: str) -> None:
    llm = llamaindex_stars.StarsLLM(**FIELDS)
    assert (await llm.acomplete(PROMPT)).text == expected
    parts = [part async for part in await llm.astream_complete(PROMPT)]
    assert parts[-1].text == expected
    messages = [ChatMessage(PROMPT)]
    chat = await llm.achat(messages)
    chats = [part async for part in await llm.astream_chat(messages)]
    assert chats[-1].message.content == chat.message.content == llm.chat(messages).message.content


def test_llamaindex_chats_use_the_template_of_the_model() -> None:
    template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    config = StarsConfig(
        model={"name_or_path": shared_model("TinyStories-656K"), "chat_template": template},
        reward=lambda prompt, completion: 1.0,
        align=AlignParams(schedule=NoSchedule()),
        sampling=SamplingParams(max_tokens=12, seed=1),
    )
    llm = llamaindex_stars.StarsLLM(config=config)
    assert llm.metadata.is_chat_model
    messages = [ChatMessage("Be brief.", role="system"), ChatMessage("Hello", role="user")]
    chat = Chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}])
    [by_engine] = StarsEngine.shared(config).generate(chat)
    assert llm.chat(messages).message.content == by_engine.text
    assert "".join(r.delta for r in llm.stream_chat(messages)) == by_engine.text
    one_turn = llm.chat([ChatMessage("Hello")]).message.content
    assert llm.complete("Hello").text == one_turn  # a string is a user turn here
    image = ChatMessage(role="user", blocks=[{"block_type": "image", "image": b"x"}])
    with pytest.raises(PromptError, match="ImageBlock"):
        llm.chat([image])
    llm.close()


@pytest.mark.slow
@pytest.mark.parametrize("begin", ["", "<|startoftext|>"])
@pytest.mark.parametrize("formatted", [False, True])
def test_rendered_prompts_begin_once(begin: str, formatted: bool) -> None:
    """As `tokenizer(prompt)` has it: begin of text stands before it, and is not doubled."""
    llm = llamaindex_stars.StarsLLM(
        **FIELDS,
        completion_to_prompt=lambda text: f"{begin}Say: {text}",
        messages_to_prompt=lambda messages: f"{begin}Say: {messages[0].content}",
    )
    codec = llm.load().engine().model.codec
    expected = codec.encode_prompt("Say: it")
    assert expected[0] == codec.tokenizer.bos_token_id
    text = f"{begin}Say: it" if formatted else "it"
    by_ids = StarsEngine.shared(llm.settings()).generate(
        TokenIds(expected), sampling=SamplingParams(**SETTINGS)
    )[0]
    response = llm.complete(text, formatted=formatted)
    assert response.text == by_ids.text
    assert response.raw["usage"]["prompt_tokens"] == len(expected)
    assert llm.chat([ChatMessage("it")]).message.content == by_ids.text
    assert "".join(r.delta for r in llm.stream_complete(text, formatted=formatted)) == by_ids.text


def test_text_in_all_kinds_of_blocks_is_read() -> None:
    document = DocumentBlock(data=b"Four \xc2\xbd.", document_mimetype="text/plain")
    cited = CitableBlock(title="Title", source="s", content=[TextBlock(text="Five."), document])
    blocks = [TextBlock(text="Hi"), document, cited]
    [turn] = [read_message(ChatMessage(role="user", blocks=blocks))]
    assert turn.content == "Hi\nFour \u00bd.\nTitle\nFive.\nFour \u00bd."
    pdf = DocumentBlock(data=b"%PDF", document_mimetype="application/pdf")
    elsewhere = DocumentBlock(url="http://localhost/a.txt", document_mimetype="text/plain")
    for block in (pdf, elsewhere, CitableBlock(title="t", source="s", content=[pdf])):
        with pytest.raises(PromptError, match="DocumentBlock"):
            read_message(ChatMessage(role="user", blocks=[block]))


@pytest.mark.slow
def test_llamaindex_uses_custom_templates(expected: str) -> None:
    llm = llamaindex_stars.StarsLLM(
        **FIELDS,
        completion_to_prompt=lambda text: f"<|startoftext|>{text} in this movie",
        messages_to_prompt=lambda messages: "<|startoftext|>" + messages[0].content,
    )
    assert llm.complete("The acting").text == expected
    assert llm.chat([ChatMessage(PROMPT)]).message.content == expected


def test_blocks_that_hold_text_are_read(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("from a file", encoding="utf-8")
    cited = TextBlock(text="cited")
    cases: list[tuple[Any, str]] = [
        (CachePoint(cache_control=CacheControl(type="ephemeral")), "a"),
        (CitableBlock(title="T", source="s", content=[cited]), "a\nT\ncited"),
        (
            CitationBlock(title="T", source="s", cited_content=cited, additional_location_info={}),
            "a\nT\ncited",
        ),
        (DocumentBlock(data=b"some text", document_mimetype="text/plain"), "a\nsome text"),
        (DocumentBlock(data=b"{}", document_mimetype="application/json"), "a\n{}"),
        (
            DocumentBlock(path=tmp_path / "notes.md", document_mimetype="text/markdown"),
            "a\nfrom a file",
        ),
    ]
    for block, expected in cases:
        assert read_message(ChatMessage(blocks=[TextBlock(text="a"), block])).content == expected
    for refused in (
        DocumentBlock(url="http://localhost/a.txt", document_mimetype="text/plain"),
        DocumentBlock(data=b"%PDF", document_mimetype="application/pdf"),
    ):
        with pytest.raises(PromptError, match="DocumentBlock"):
            read_message(ChatMessage(blocks=[refused]))

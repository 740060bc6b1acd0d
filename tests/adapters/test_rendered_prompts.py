"""Prompts that a chat template has rendered, in the engine and in both adapters."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache

import llamaindex_stars
from langchain_stars import ChatStars, StarsLLM
from stars_engine import Chat, Message, RenderedPrompt, StarsConfig
from stars_engine.chat.prompts import resolve_prompt
from stars_engine.tokenization.codec import Codec
from tests.support.chat_templates import tokenizer_of
from tests.support.scripted import scripted

TEXT = "<|im_start|>user\nyo<|im_end|>\n<|im_start|>assistant\n"


def answer(asked: str) -> str:
    return "Hi there" if asked.startswith("<|im_start|>user\nyo") else "noise"


def judge(prompt: str, completion: str) -> float:
    return 1.0


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    given = {"reward": judge, "schedule": {"kind": "none"}, "max_tokens": 8, "seed": 0}
    return {"model": scripted(answer), **given}


def test_langchain_reads_rendered_prompts(settings: dict[str, Any]) -> None:
    llm = StarsLLM(**settings, cache=InMemoryCache())
    prompt = RenderedPrompt(TEXT)
    assert llm.invoke(prompt) == "Hi there"
    assert llm.batch([prompt, "hm"]) == ["Hi there", "noise"]
    assert "".join(llm.stream(prompt)) == "Hi there"
    assert asyncio.run(llm.ainvoke(prompt)) == "Hi there"
    assert llm.invoke(TEXT) == "noise"  # also from the cache
    assert llm.invoke(TEXT, prompt_format="rendered") == "Hi there"
    assert StarsLLM(**settings, prompt_format="rendered").invoke(TEXT) == "Hi there"


def test_llamaindex_reads_formatted_prompts_as_rendered(settings: dict[str, Any]) -> None:
    llm = llamaindex_stars.StarsLLM(**settings)
    assert llm.complete(TEXT, formatted=True).text == "Hi there"
    assert [r.text for r in llm.stream_complete(TEXT, formatted=True)][-1] == "Hi there"
    assert asyncio.run(llm.acomplete(TEXT, formatted=True)).text == "Hi there"
    assert llm.complete(TEXT).text == "noise"


@pytest.mark.slow
def test_without_a_template_formatted_text_stays_text() -> None:
    llm = llamaindex_stars.StarsLLM(max_tokens=4, seed=1)
    assert not llm.metadata.is_chat_model
    same = [llm.complete("A film</s>", formatted=on).raw["usage"] for on in (True, False)]
    assert same[0]["prompt_tokens"] == same[1]["prompt_tokens"]


def test_template_pieces_in_a_string_are_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    codec = Codec(tokenizer_of("hermes"))
    for text in ("How warm is it?", "<s>struck</s>", "<|im_start", TEXT, TEXT):
        resolve_prompt(text, codec)
    [record] = caplog.records
    assert "'<|im_" in record.message
    assert "RenderedPrompt(text) or prompt_format='rendered'" in record.message
    caplog.clear()
    rendered = resolve_prompt(TEXT, Codec(tokenizer_of("hermes")), prompt_format="rendered")
    assert rendered.token_ids == resolve_prompt(RenderedPrompt(TEXT), codec).token_ids
    assert len(rendered.token_ids) < len(resolve_prompt(TEXT, codec).token_ids)
    assert not caplog.records


def test_template_pieces_in_the_only_message_are_announced(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A chat model of LangChain turns a string into a message."""
    codec = Codec(tokenizer_of("hermes"))
    turns = [Message(role="user", content=TEXT), Message(role="assistant", content="Hi")]
    resolve_prompt(Chat([*turns, Message(role="user", content="And?")]), codec)
    assert not caplog.records
    chat = ChatStars(**{**settings, "model": scripted(answer)})
    assert chat.invoke(TEXT).text == "noise"
    assert caplog.text.count("a control token of the model's chat template") == 1


def test_the_config_knows_the_format() -> None:
    assert StarsConfig(prompt_format="rendered").prompt_format == "rendered"

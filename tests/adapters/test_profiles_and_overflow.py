"""What LangChain's middleware reads: the profile of a model, and the error of a full context."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core import exceptions

from langchain_stars import ChatStars, StarsContextOverflowError, StarsLLM
from stars_engine import ContextOverflowError, PromptError
from tests.support.scripted import scripted

OVERFLOW = getattr(exceptions, "ContextOverflowError", exceptions.LangChainException)


def judge(prompt: str, completion: str) -> float:
    return 1.0


def chat_of(kind: Callable[..., Any] = ChatStars, **given: Any) -> Any:
    fields = {"reward": judge, "schedule": {"kind": "none"}, "max_tokens": 8} | given
    return kind(model=scripted(lambda _: "Hi"), **fields)


def test_a_full_context_is_an_error_of_langchain() -> None:
    chat, long = chat_of(), "x" * 20_000
    for ask in (
        lambda: chat.invoke(long),
        lambda: list(chat.stream(long)),
        lambda: asyncio.run(chat.ainvoke(long)),
        lambda: chat_of(StarsLLM).invoke(long),
    ):
        with pytest.raises(OVERFLOW) as caught:
            ask()
        assert isinstance(caught.value, StarsContextOverflowError)
        assert isinstance(caught.value, ContextOverflowError | PromptError)
        assert "shorten the prompt" in caught.value.hint
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), StarsContextOverflowError)


def test_the_profile_comes_from_the_files_when_it_is_used() -> None:
    chat = ChatStars(model="stars:embedded-lm", reward=judge, schedule={"kind": "none"})
    profile = chat.profile
    assert (profile["max_input_tokens"], profile["max_output_tokens"]) == (512, 512)
    assert profile["tool_calling"] is False  # it has no chat template
    assert not chat.engine().is_loaded
    for copied in (chat.model_copy(), copy.copy(chat), pickle.loads(pickle.dumps(ChatStars()))):
        assert copied.profile["max_input_tokens"] == 512
    assert chat.model_copy(update={"max_tokens": 9}).profile["max_output_tokens"] == 9


def test_the_profile_follows_the_template() -> None:
    profile = chat_of().profile
    assert profile["tool_calling"] is True
    assert profile["reasoning_output"] is False
    assert profile["max_output_tokens"] == 8
    thinking = scripted(lambda _: "Hi", "thinking")
    assert chat_of().model_copy(update={"model": thinking}).profile["reasoning_output"] is True


def test_a_profile_that_is_given_or_unknown() -> None:
    assert ChatStars(profile={"max_input_tokens": 5}).profile == {"max_input_tokens": 5}
    missing = ChatStars(model="no/such-model", reward=judge, schedule={"kind": "none"})
    assert "max_input_tokens" not in missing.profile
    assert missing.profile["text_outputs"] is True

"""Behaviour common to all three adapter classes, through the API of each framework."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from llama_index.core.llms import ChatMessage

import langchain_stars
import llamaindex_stars
from stars_engine import ConfigError, ContextOverflowError, TransformersModel
from stars_engine.config import ModelConfig
from tests.support.engines import idle, until
from tests.support.scripted import random_chat_model
from tests.support.serving import served_model

FIELDS = {
    "num_candidates": 4,
    "schedule": {"kind": "constant", "value": 1.5},
    "max_attempts": 4,
    "segment_len": 8,
    "max_tokens": 40,
    "seed": 3,
}
ASKED = "How warm is it in Ålesund? 🥶"


def judge(prompt: str, completion: str) -> float:
    return float(len(completion) % 3)


@dataclass
class Adapter:
    """One adapter class, and how it is called."""

    make: Callable[..., Any]

    def ask(self, llm: Any, prompt: str = ASKED, **given: Any) -> str:
        if isinstance(llm, llamaindex_stars.StarsLLM):
            return llm.complete(prompt, **given).text
        return self.text(llm.invoke(prompt, **given))

    async def aask(self, llm: Any, prompt: str = ASKED, **given: Any) -> str:
        if isinstance(llm, llamaindex_stars.StarsLLM):
            return (await llm.acomplete(prompt, **given)).text
        return self.text(await llm.ainvoke(prompt, **given))

    def stream(self, llm: Any, prompt: str = ASKED, **given: Any) -> Iterator[str]:
        if isinstance(llm, llamaindex_stars.StarsLLM):
            return (part.delta for part in llm.stream_complete(prompt, **given))
        return map(self.text, llm.stream(prompt, **given))

    async def astream(self, llm: Any, prompt: str = ASKED, **given: Any) -> AsyncIterator[str]:
        if isinstance(llm, llamaindex_stars.StarsLLM):
            async for part in await llm.astream_complete(prompt, **given):
                yield part.delta
        else:
            async for part in llm.astream(prompt, **given):
                yield self.text(part)

    def usage(self, llm: Any) -> tuple[int, int]:
        """Return tokens of prompt and completion."""
        if isinstance(llm, llamaindex_stars.StarsLLM):
            usage = llm.complete(ASKED).additional_kwargs
        elif isinstance(llm, langchain_stars.ChatStars):
            metadata = llm.invoke(ASKED).usage_metadata
            return metadata["input_tokens"], metadata["output_tokens"]
        else:
            usage = llm.generate([ASKED]).generations[0][0].generation_info["usage"]
        return usage["prompt_tokens"], usage["completion_tokens"]

    @staticmethod
    def text(answer: Any) -> str:
        return answer if isinstance(answer, str) else answer.text


KINDS = [langchain_stars.StarsLLM, langchain_stars.ChatStars, llamaindex_stars.StarsLLM]


@pytest.fixture(scope="module", params=["local", pytest.param("server", marks=pytest.mark.slow)])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelConfig]:
    """A model in this process, and the same behind a server."""
    with ExitStack() as stack:
        model: ModelConfig = random_chat_model()
        if request.param == "server":
            folder = tmp_path_factory.mktemp("tokenizer")
            model = stack.enter_context(served_model(random_chat_model(), folder))
        kept = langchain_stars.ChatStars(model=model, reward=judge, **FIELDS).load()
        loads = kept.engine().stats().num_loads
        yield model
        assert kept.engine().stats().num_loads == loads == 1  # of all classes together
        kept.close()


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind.__module__.split('.')[0]}.{kind.__name__}")
def adapter(request: pytest.FixtureRequest, model: ModelConfig) -> Adapter:
    # Servers draw with other noise. With this seed, an answer has all 40 tokens, and a stop string
    # changes no verdict.
    fields = FIELDS if isinstance(model, TransformersModel) else FIELDS | {"seed": 5}

    def make(**given: Any) -> Any:
        return request.param(model=model, reward=judge, **(fields | given))

    return Adapter(make)


@pytest.mark.slow
def test_equal_settings_give_equal_text_in_all_frameworks(model: ModelConfig) -> None:
    """A string is a turn of a user, and so is a message of one."""
    llms: list[Any] = [kind(model=model, reward=judge, **FIELDS) for kind in KINDS]
    asked = Adapter(lambda: None)
    texts = [asked.ask(llm) for llm in llms]
    texts.append(llms[0].invoke([HumanMessage(ASKED)]))
    texts.append(llms[2].chat([ChatMessage(ASKED)]).message.content)
    assert len(set(texts)) == 1
    assert texts[0]


def test_all_call_methods_give_the_same_text(adapter: Adapter) -> None:
    llm = adapter.make()
    text = adapter.ask(llm)
    assert "".join(adapter.stream(llm)) == text
    assert asyncio.run(adapter.aask(llm)) == text

    async def streamed() -> str:
        return "".join([piece async for piece in adapter.astream(llm)])

    assert asyncio.run(streamed()) == text


def test_stop_strings(adapter: Adapter) -> None:
    llm = adapter.make()
    text = adapter.ask(llm)
    stop = text[len(text) // 2 :][:2]
    cut = text[: text.index(stop)]
    assert adapter.ask(llm, stop=[stop]) == cut
    assert "".join(adapter.stream(llm, stop=[stop])) == cut
    assert adapter.ask(adapter.make(stop=stop)) == cut


@pytest.mark.slow
def test_characters_are_never_split(adapter: Adapter) -> None:
    """This model writes random bytes: what is emitted is the text, piece by piece."""
    llm = adapter.make(max_tokens=80, segment_len=3)
    pieces = list(adapter.stream(llm))
    assert len(pieces) > 5
    assert "".join(pieces) == adapter.ask(llm)


def test_usage(adapter: Adapter) -> None:
    num_prompt, num_completion = adapter.usage(adapter.make())
    assert num_completion == 40
    assert num_prompt > len(ASKED.encode())  # and the template around it


@pytest.mark.slow
def test_seeds_and_batches(adapter: Adapter) -> None:
    llm = adapter.make()
    alone = [adapter.ask(llm, f"Number {index}") for index in range(8)]

    async def together() -> list[str]:
        return await asyncio.gather(*(adapter.aask(llm, f"Number {i}") for i in range(8)))

    assert asyncio.run(together()) == alone
    assert adapter.ask(llm, seed=4) != adapter.ask(llm)
    assert adapter.ask(adapter.make(seed=4)) == adapter.ask(llm, seed=4)


async def test_leaving_a_stream_ends_its_request(adapter: Adapter) -> None:
    llm = adapter.make(max_tokens=4_000)
    pieces = adapter.astream(llm)
    async for _ in pieces:
        break
    await pieces.aclose()  # type: ignore[attr-defined]
    engine = llm.engine()
    await until(lambda: idle(engine))
    task = asyncio.create_task(adapter.aask(llm))
    await until(lambda: engine.stats().num_active == 1)
    task.cancel()
    await until(lambda: idle(engine))


def test_errors_name_what_is_wrong(adapter: Adapter) -> None:
    llm = adapter.make()
    with pytest.raises(ConfigError, match="did you mean `temperature`"):
        adapter.ask(llm, temprature=1)
    with pytest.raises(ConfigError, match="beta"):
        adapter.ask(llm, beta=-1)
    with pytest.raises(ContextOverflowError, match="Hint"):
        adapter.ask(llm, "x" * 20_000)
    assert adapter.ask(llm)  # none of them does any harm


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_process_exits_cleanly_during_an_answer(kind: Any) -> None:
    ask = "complete" if "llama" in kind.__module__ else "invoke"
    stream = "stream_complete" if ask == "complete" else "stream"
    package = kind.__module__.split(".")[0]
    code = f"""
import threading
from {package} import {kind.__name__}
llm = {kind.__name__}(max_tokens=400)
threading.Thread(target=lambda: llm.{ask}("This movie"), daemon=True).start()
pieces = iter(llm.{stream}("This movie"))
next(pieces)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]

"""Random pydantic models through both adapters: answers validate, or the model is refused."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langchain_core.exceptions import OutputParserException
from llama_index.core import PromptTemplate
from pydantic import BaseModel

from langchain_stars import ChatStars
from llamaindex_stars import StarsLLM
from stars_engine import ConfigError, StarsWarning, TransformersModel
from tests.support.random_models import random_model
from tests.support.scripted import ENDING, random_chat_model, scripted

METHODS = ("json_schema", "json_mode", "function_calling", "llamaindex")
# How many models are tried, from which on; all 500 were measured once by the variable.
FIRST, COUNT = (int(n) for n in os.environ.get("STARS_RANDOM_MODELS", "0:12").split(":"))


def judge(prompt: str, completion: str) -> float:
    return 1.0


@pytest.fixture(scope="module")
def model() -> Iterator[TransformersModel]:
    made = random_chat_model()
    kept = ChatStars(model=made, reward=judge, schedule={"kind": "none"}).load()
    yield made
    kept.close()


def ways(model: TransformersModel, cls: type[BaseModel], seed: int) -> dict[str, Callable[[], Any]]:
    """Return, by method, a function that requests an object of a class."""
    fields: dict[str, Any] = {
        "model": model,
        "reward": judge,
        "schedule": {"kind": "none"},
        "num_candidates": 1,
        "segment_len": 60,
        "max_tokens": 300,
        "seed": seed,
        "logit_bias": ENDING,
    }
    chat, llm = ChatStars(**fields), StarsLLM(**fields)

    def langchain(method: Any) -> Callable[[], Any]:
        return lambda: chat.with_structured_output(cls, method=method).invoke("Hi")

    found = {method: langchain(method) for method in METHODS[:3]}
    return found | {"llamaindex": lambda: llm.structured_predict(cls, PromptTemplate("Hi"))}


def outcome(ask: Callable[[], Any], cls: type[BaseModel], num_steps: Callable[[], int]) -> str:
    """Return the outcome of one request; raise if it is neither valid, unfinished nor refused."""
    before = num_steps()
    try:
        found = ask()
    except ConfigError:
        return "refused" if num_steps() == before else "refused too late"
    except (StarsWarning, OutputParserException) as error:  # warnings are errors here
        if "cut off by max_tokens" in str(error):
            return "unfinished"
        if "a grammar cannot express" in str(error) and num_steps() == before:
            return "refused"
        raise
    except ValueError as error:
        if "has no tool call" in str(error):
            return "unfinished"
        if "needs the schema of an object" in str(error) and num_steps() == before:
            return "refused"
        raise
    assert isinstance(found, cls)
    assert all(map(math.isfinite, numbers_in(found.model_dump())))
    return "valid"


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from numbers_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from numbers_in(part)


@pytest.mark.slow
def test_random_models(model: TransformersModel) -> None:
    chat = ChatStars(model=model, reward=judge, schedule={"kind": "none"})
    counts: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []

    def num_steps() -> int:
        return chat.engine().stats().num_steps

    for seed in range(FIRST, FIRST + COUNT):
        cls = random_model(seed)
        for method, ask in ways(model, cls, seed).items():
            try:
                counts[method, outcome(ask, cls, num_steps)] += 1
            except Exception as error:
                counts[method, "wrong"] += 1
                wrong.append(f"seed {seed}, {method}: {type(error).__name__}: {error}"[:600])
    summary = str(dict(sorted(counts.items())))
    print(summary)  # noqa: T201 - `pytest -s` shows how many were valid
    assert not wrong, "\n\n".join([summary, *wrong])
    assert {end for _, end in counts} <= {"valid", "unfinished", "refused"}, summary
    for method in METHODS:
        assert counts[method, "valid"] > COUNT / 3, summary


class Numbers(BaseModel):
    values: list[float]


@pytest.mark.slow
@pytest.mark.parametrize("written", ["1e400", "-1e400", "1e-400", "1" + "0" * 400])
def test_numbers_are_finite(written: str) -> None:
    """Even if the model would write numbers beyond floats."""
    said = scripted(lambda _: f'{{"values": [{written}]}}')
    fields = {"reward": judge, "schedule": {"kind": "none"}, "max_tokens": 500}
    chat = ChatStars(model=said, **fields)
    for method in METHODS[:3]:
        found = chat.with_structured_output(Numbers, method=method).invoke("Hi")  # type: ignore[arg-type]
        assert all(map(math.isfinite, found.values))
    found = StarsLLM(model=said, **fields).structured_predict(Numbers, PromptTemplate("Hi"))
    assert all(map(math.isfinite, found.values))

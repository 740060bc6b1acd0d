"""Return values of user callables and language models are checked before use."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from stars_engine import (
    AlignParams,
    ConfigError,
    FunctionSchedule,
    GenerationError,
    NoSchedule,
    RewardError,
    SamplingParams,
    ScheduleError,
    StarsEngine,
    TransformersModel,
)
from stars_engine.backends.base import Draft, DraftRequest
from stars_engine.config.rewards.function import FunctionReward
from stars_engine.rewards.base import as_number
from stars_engine.scalars import real_number
from tests.support.marks import slow_but_each, slow_but_first

NO_NUMBERS = [
    "1.0",
    " 1_0 ",
    b"1",
    bytearray(b"1"),
    memoryview(b"1"),
    np.str_("1"),
    np.bytes_(b"1"),
    np.array("1.0"),
    np.array(["1.0"], dtype=object),
    np.array([1.0, 2.0]),
    torch.tensor([1.0, 2.0]),
    torch.tensor(1j),
    None,
    [1.0],
    {"score": 1.0},
    1j,
    10**400,
    Decimal("sNaN"),
    float,
    np.datetime64("2020-01-01"),
]
NUMBERS = [
    1,
    1.0,
    True,
    Fraction(1, 1),
    Decimal(1),
    np.float16(1),
    np.int8(1),
    np.array(1.0),
    np.array([[1]]),
    torch.tensor([1.0], dtype=torch.bfloat16),
    torch.tensor(1),
]


def _name(value: object) -> str:
    """Return an identifier that is the same in every process: no addresses."""
    return re.sub(r" (object )?at 0x[0-9a-f]+", "", repr(value))


@pytest.mark.parametrize("value", NO_NUMBERS, ids=_name)
def test_no_numbers(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^a threshold must be a number, not "):
        real_number(value, "a threshold")
    with pytest.raises(TypeError, match=r"^a reward must be a number, not "):
        as_number(value)


@pytest.mark.parametrize("value", NUMBERS, ids=_name)
def test_numbers(value: object) -> None:
    assert real_number(value, "a threshold") == 1.0
    assert type(as_number(value)) is float


@pytest.mark.parametrize("value", slow_but_first(["1.0", b"1", " 1_0 "]))
def test_callables_that_return_texts_get_the_error(engine: StarsEngine, value: object) -> None:
    short = SamplingParams(max_tokens=8, seed=0)
    align = AlignParams(schedule=FunctionSchedule(function=lambda _: value))
    with pytest.raises(ScheduleError, match="a threshold must be a number, not"):
        engine.generate("A", sampling=short, align=align)
    reward = FunctionReward(function=lambda *_: value)
    config = {"model": TransformersModel(name_or_path="stars:embedded-lm"), "reward": reward}
    with (
        StarsEngine(
            engine.config.replace(**config, align=AlignParams(schedule=NoSchedule()))
        ) as own,
        pytest.raises(RewardError, match="a reward must be a number, not"),
    ):
        own.generate("A", sampling=short)


# --- drafts ---


class CustomModel:
    """A custom language model: the real one, with one of its drafts replaced."""

    def __init__(self, inner: Any, change: Callable[[Draft, DraftRequest], Any]) -> None:
        self._inner, self._change = inner, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def draft(self, requests: Sequence[DraftRequest]) -> list[Any]:
        drafts = self._inner.draft(requests)
        return [self._change(*pair) for pair in zip(drafts, requests, strict=True)]


def end_of(model: Any) -> int:
    sampling = SamplingParams()
    return next(token for token in range(model.vocab_size) if model.is_end(token, sampling))


WRONG: dict[str, tuple[Callable[[Draft, DraftRequest, Any], Any], str]] = {
    "too long": (lambda d, r, m: Draft((*d.token_ids, 5)), r"has 9 tokens where 1 to 8 were"),
    "empty": (lambda d, r, m: Draft(()), r"has 0 tokens where 1 to 8"),
    "short": (lambda d, r, m: Draft((5, 6)), r"has 2 of 8 tokens and does not end the text"),
    "outside": (
        lambda d, r, m: Draft((m.vocab_size, *d.token_ids[1:])),
        r"token id 4096, outside its vocabulary of 4096",
    ),
    "negative": (lambda d, r, m: Draft((*d.token_ids[:-1], -1)), r"token id -1, outside"),
    "no integer": (
        lambda d, r, m: Draft(tuple(map(float, d.token_ids))),
        r"is not a Draft of token ids",
    ),
    "text": (lambda d, r, m: Draft("abcdefgh"), r"is not a Draft of token ids"),
    "ids alone": (lambda d, r, m: list(d.token_ids), r"is not a Draft of token ids"),
    "nothing": (lambda d, r, m: None, r"is not a Draft of token ids"),
    "lookahead": (lambda d, r, m: Draft(d.token_ids, (5,)), r"has 1 tokens of lookahead where 0"),
    "after the end": (
        lambda d, r, m: Draft((5, end_of(m), *d.token_ids[2:])),
        r"goes on after the end of text, its token 1",
    ),
}


@pytest.mark.parametrize("name", slow_but_each(3, WRONG))
def test_an_invalid_draft_is_an_error_of_the_language_model(engine: StarsEngine, name: str) -> None:
    change, words = WRONG[name]

    def one(draft: Draft, request: DraftRequest) -> Any:
        return change(draft, request, engine.model) if request.sampling.top_p == 0.9 else draft

    align = AlignParams(schedule=NoSchedule(), segment_len=8)
    plain = SamplingParams(max_tokens=8, min_tokens=8, seed=0, top_k=None)
    with StarsEngine(model=CustomModel(engine.model, one), reward=engine.reward) as own:
        failed, fine = own.generate(
            ["A", "A"],
            sampling=[plain.replace(top_p=0.9), plain],
            align=align,
            return_exceptions=True,
        )
    assert isinstance(failed, GenerationError)
    assert "the language model CustomModel returned a draft that" in str(failed)
    assert re.search(words, str(failed)), failed
    assert len(fine.token_ids) == 8  # the other request is not affected


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_ids_of_other_kinds_are_read(engine: StarsEngine, kind: Callable[..., Any]) -> None:
    def other(draft: Draft, _: DraftRequest) -> Draft:
        return Draft(kind(list(draft.token_ids)), kind(list(draft.lookahead_ids)))

    sampling = SamplingParams(max_tokens=16, seed=0)
    align = AlignParams(schedule=NoSchedule(), segment_len=8)
    [expected] = engine.generate("A", sampling=sampling, align=align)
    with StarsEngine(model=CustomModel(engine.model, other), reward=engine.reward) as own:
        [found] = own.generate("A", sampling=sampling, align=align)
    assert found.token_ids == expected.token_ids
    assert all(type(token) is int for token in found.token_ids)


# --- names and values ---


@pytest.mark.parametrize("field", ["name_or_path", "tokenizer_name_or_path", "revision"])
@pytest.mark.parametrize("bad", ["n" * 5000, "a/" + "n" * 300, "a/" * 2500, "a\0b", "a\nb"])
def test_impossible_names(field: str, bad: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field}: .* is not allowed: ") as caught:
        TransformersModel(**{"name_or_path": "a/b", field: bad})
    assert len(str(caught.value)) < 600


def test_long_names_of_functions_and_adapters() -> None:
    for make in (
        lambda: FunctionReward(function="m" * 5000 + ":f"),
        lambda: FunctionSchedule(function="m:" + "f" * 5000),
        lambda: TransformersModel(name_or_path="a/b", adapter_path="n" * 5000),
    ):
        with pytest.raises(ConfigError, match=r"500[02] characters is too long"):
            make()


def nested() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize("field", ["device_map", "model_kwargs"])
@pytest.mark.parametrize(
    "value",
    [{"a": "\ud800"}, {"\udfff": 1}, {"a": [{"b": ("x\udc80",)}]}, {"a": b"\xff"}, {"a": nested()}],
    ids=repr,
)
def test_values_that_no_dump_can_hold(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field}: .*it (contains|is nested)"):
        TransformersModel(name_or_path="a/b", **{field: value})

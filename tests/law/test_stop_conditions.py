"""`min_tokens` against all ends of an answer, and defaults from a generation config."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from stars_engine import AlignParams, NoSchedule, SamplingParams, StarsEngine
from stars_engine.backends.facts import sampling_of
from stars_engine.core.offline import stars
from stars_engine.testing import TableReward
from tests.support.byte_tokenizers import FixedOutputModel, byte_level
from tests.support.rollouts import make_rollout

PLAIN = AlignParams(schedule=NoSchedule(), segment_len=8)


def written(text: str, *, segment_len: int, **sampling: Any) -> Any:
    """Have a text written, a byte for each token."""
    kind = byte_level()
    rollout = make_rollout(
        kind.ids(b"a"),
        align=AlignParams(schedule=NoSchedule(), segment_len=segment_len),
        sampling=SamplingParams(max_tokens=len(text.encode()), **sampling),
    )
    model = FixedOutputModel(kind.codec, kind.ids(text.encode()))
    events = list(stars([rollout], model, TableReward({})))
    result = rollout.result()
    assert "".join(event.text for event in events) == result.text
    return result


def reference(text: str, stops: Sequence[str], min_tokens: int) -> tuple[str, int]:
    """Return the answer and its length in tokens, as vLLM has it: token by token.

    A stop string counts if a token beyond the first `min_tokens` made it whole.
    """
    for size in range(min_tokens + 1, len(text) + 1):
        found = [
            place
            for stop in stops
            if (place := text[:size].find(stop, max(0, size - len(stop)))) >= 0
        ]
        if found:
            return text[: min(found)], size
    return text, len(text)


@pytest.mark.parametrize("segment_len", [1, 3, 8, 32])
@pytest.mark.parametrize(
    ("min_tokens", "stop", "text"),
    [
        (0, "a ", "b"),
        (2, "a ", "b"),
        (3, "a ", "ba bb"),  # made whole by the third token
        (4, "a ", "ba bb"),
        (6, "a ", "ba bb"),  # begins before, ends behind
        (7, "a ", "ba bba cc"),
        (40, "a ", "ba bba cca "),
        (4, "a bb", "b"),
    ],
)
def test_stop_strings_wait_for_min_tokens(
    segment_len: int, min_tokens: int, stop: str, text: str
) -> None:
    whole = "ba bba cca "
    least = min(min_tokens, len(whole))
    result = written(whole, segment_len=segment_len, stop=[stop], min_tokens=least)
    assert result.text == text
    assert len(result.token_ids) >= least
    assert result.finish_reason == ("length" if text == whole else "stop")


@settings(max_examples=200, deadline=None)
@given(
    text=st.text("ab", min_size=1, max_size=14),
    stops=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    least=st.integers(0, 14),
    segment_len=st.integers(1, 6),
)
def test_stop_strings_end_answers_as_in_token_by_token_decoding(
    text: str, stops: list[str], least: int, segment_len: int
) -> None:
    least = min(least, len(text))
    result = written(text, segment_len=segment_len, stop=stops, min_tokens=least)
    expected, num_tokens = reference(text, stops, least)
    assert (result.text, len(result.token_ids)) == (expected, num_tokens)


def test_incomplete_characters_before_min_tokens() -> None:
    result = written("é🙂é🙂x", segment_len=2, stop=["🙂"], min_tokens=6)
    assert result.text == "é🙂é"


def test_min_tokens_applies_to_every_end(engine: StarsEngine) -> None:
    """The model's own end, stop tokens, stop strings."""
    sampling = SamplingParams(seed=0, n=8, max_tokens=60, stop=["a ", "e", " "], stop_token_ids=[5])
    free = engine.generate("Bad", sampling=sampling, align=PLAIN)
    assert max(len(result.token_ids) for result in free) < 40
    held = engine.generate("Bad", sampling=sampling.replace(min_tokens=40), align=PLAIN)
    assert min(len(result.token_ids) for result in held) >= 40
    assert all(result.finish_reason == "stop" for result in held)
    for result in held:
        assert len(result.token_ids) < 60
        assert 5 not in result.token_ids[:40]
    streamed = engine.stream("Bad", sampling=sampling.replace(min_tokens=40, n=1), align=PLAIN)
    assert "".join(event.text for event in streamed) == held[0].text


# --- generation configs ---


@cache
def default(name: str) -> Any:
    return SamplingParams.model_fields[name].default


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"do_sample": False}, {"temperature": 0}),
        ({"do_sample": False, "temperature": 0.7, "top_k": 20}, {"temperature": 0, "top_k": 20}),
        ({"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": True}, {}),
        ({}, {}),
        ({"min_new_tokens": 5}, {"min_tokens": 5}),
        ({"min_new_tokens": 50, "max_new_tokens": 9}, {"min_tokens": 9, "max_tokens": 9}),
        ({"min_new_tokens": 500}, {"min_tokens": 128}),
        ({"stop_strings": "###"}, {"stop": ("###",)}),
        ({"stop_strings": ["###", "\n"]}, {"stop": ("###", "\n")}),
        ({"top_k": 0}, {"top_k": None}),
    ],
)
def test_sampling_of_a_generation_config(given: dict[str, Any], expected: dict[str, Any]) -> None:
    sampling = sampling_of(GenerationConfig.from_dict(given))
    wanted = {name: default(name) for name in ("temperature", "top_k", "min_tokens", "stop")}
    wanted |= {"max_tokens": 128, **expected}
    assert {name: getattr(sampling, name) for name in wanted} == wanted


@pytest.mark.parametrize("segment_len", [1, 2, 3, 4])
def test_the_first_stop_string_to_be_complete_counts(segment_len: int) -> None:
    result = written("aabb", segment_len=segment_len, stop=["b", "abb"])
    assert (result.text, len(result.token_ids)) == ("aa", 3)

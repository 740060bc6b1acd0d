"""Split characters: a text depends on its token ids only, not on where they were split."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stars_engine import AlignParams, NoSchedule, SamplingParams
from stars_engine.core.offline import stars
from stars_engine.testing import TableReward
from stars_engine.tokenization.codec import Codec
from tests.support.byte_tokenizers import (
    BYTE_TOKENIZERS,
    REPLACEMENT,
    ByteTokenizer,
    FixedOutputModel,
    byte_fallback,
    byte_level,
)
from tests.support.rollouts import make_rollout

# Bytes of real characters, and bytes that are wrong alone, first, second or everywhere.
BYTES = sorted({*"a \né€🙂\ufffd\u0800\U00010000".encode(), 0xC0, 0xED, 0xF4, 0xFF})


@BYTE_TOKENIZERS
@given(data=st.lists(st.sampled_from(BYTES), max_size=10), spot=st.integers(0, 10))
@example(data=[0xED, 0xA0], spot=0)  # half a surrogate pair
def test_longer_token_sequences_extend_the_text(
    make: Callable[[], ByteTokenizer], data: list[int], spot: int
) -> None:
    kind = make()
    prompt, ids = kind.ids(b"a"), kind.ids(bytes(data))
    ids.insert(spot, kind.control)  # has no text: bytes on both sides of it join
    read = [kind.codec.completion_text(prompt, ids[:size]) for size in range(len(ids) + 1)]
    assert all(longer.startswith(text) for (text, _), (longer, _) in pairwise(read))
    text, num_ids = read[-1]
    kept, waiting = (
        bytes(token - kind.first_byte for token in part if token != kind.control)
        for part in (ids[:num_ids], ids[num_ids:])
    )
    assert text == kept.decode(errors="replace")  # a wrong byte spoils itself alone
    assert waiting == b"" or begins_a_character(waiting)


def begins_a_character(data: bytes) -> bool:
    tails = [bytes([first, 0x80, 0x80])[:size] for first in (0x80, 0xA0) for size in (1, 2, 3)]
    texts = [(data + tail).decode(errors="replace") for tail in tails]
    return any(len(text) == 1 and text != REPLACEMENT for text in texts)


@BYTE_TOKENIZERS
@pytest.mark.parametrize("segment_len", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\n\xe2\x82b", "\n\ufffdb"),  # the character's third byte never comes
        (b"\n\xe2\x82\n", "\n\ufffd\n"),
        (b"\xff\xf0\x9f\x99\x82\x82", "\ufffd🙂\ufffd"),
        ("b\ufffd".encode(), "b\ufffd"),  # one that the model wrote
        (b"b\xf0\x9f", "b"),  # the answer's end is half a character, which nobody sees
    ],
)
def test_the_text_does_not_depend_on_the_segments(
    make: Callable[[], ByteTokenizer], segment_len: int, data: bytes, text: str
) -> None:
    kind = make()
    rollout = make_rollout(
        kind.ids(b"a"),
        align=AlignParams(schedule=NoSchedule(), segment_len=segment_len),
        sampling=SamplingParams(max_tokens=len(data)),
    )
    model = FixedOutputModel(kind.codec, kind.ids(data))
    emitted = "".join(event.text for event in stars([rollout], model, TableReward({})))
    assert rollout.result().text == emitted == text


def test_a_piece_of_text_is_a_replacement_character() -> None:
    codec = byte_fallback().codec
    [token] = codec.encode_continuation(REPLACEMENT)
    assert codec.completion_text([4], [token]) == (REPLACEMENT, 1)


def test_a_token_that_ends_within_a_character_waits_whole() -> None:
    kind = byte_level()
    half, rest, b = 256, 257, kind.ids(b"b")[0]
    assert kind.codec.completion_text([b], [b, half]) == ("b", 1)
    assert kind.codec.completion_text([b], [b, half, rest]) == ("ba🙂b", 3)
    assert kind.codec.completion_text([b, half], [rest]) == ("🙂b", 1)


@BYTE_TOKENIZERS
def test_an_incomplete_character_of_the_prompt(make: Callable[[], ByteTokenizer]) -> None:
    kind = make()
    prompt = kind.ids("a\ufffd".encode() + b"\xf0\x9f")
    read = partial(kind.codec.completion_text, prompt)
    assert read([]) == ("", 0)
    assert read(kind.ids(b"\x99")) == ("", 0)
    assert read(kind.ids(b"\x99\x82")) == ("🙂", 2)
    assert read(kind.ids(b"\x99b")) == ("b", 2)  # what the prompt left open stays wrong
    assert read(kind.ids("\ufffd".encode())) == ("\ufffd", 3)


def test_a_tokenizer_without_byte_information_waits_for_three_tokens() -> None:
    class Plain:
        """All of a tokenizer that a `Codec` asks for, over bytes, as a Python one may be."""

        all_special_tokens: ClassVar[list[str]] = []
        special_tokens_map: ClassVar[dict[str, str]] = {}
        unk_token = None

        def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
            return {"input_ids": list(text.encode())}

        def convert_tokens_to_ids(self, tokens: list[str]) -> list[None]:
            return [None for _ in tokens]

        def decode(self, ids: list[int], **_: object) -> str:
            return bytes(ids).decode(errors="replace")

    codec = Codec(Plain())
    emoji = list("🙂".encode())
    read = [codec.completion_text([97], emoji[:size]) for size in range(5)]
    assert read == [("", 0)] * 4 + [("🙂", 4)]
    assert codec.completion_text([97], [255] * 5) == ("\ufffd\ufffd", 2)

"""Tool calls as models write them, read back."""

from __future__ import annotations

import pytest

from stars_engine import ToolCall
from stars_engine.chat.formats import (
    GENERIC,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    ToolFormat,
    format_as_seen,
    format_of,
    marked_text,
)
from stars_engine.chat.tool_calls import Calls, may_be_a_call, read_calls
from stars_engine.tokenization.codec import Codec
from tests.support.chat import TOOLS
from tests.support.chat_templates import FAMILIES, tokenizer_of

FORMATS = [HERMES, MISTRAL, MISTRAL_NAMED, LLAMA, GENERIC]


def test_the_template_determines_the_format() -> None:
    formats = {name: format_of(family.template).name for name, family in FAMILIES.items()}
    assert formats == {
        "hermes": "hermes",
        "thinking": "hermes",
        "llama": "llama",
        "mistral": "mistral",
        "gemma": "generic",
        "phi": "generic",
    }
    assert format_of("[TOOL_CALLS]{{ name }}[ARGS]").name == "mistral, named"
    assert format_of(None) is GENERIC
    assert format_of("<tool_call><function={{ name }}>") is GENERIC


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_written_calls_are_read_back(form: ToolFormat) -> None:
    calls = [("weather", {"city": 'Ål "X"', "days": 2}), ("clock", {})]
    if form.between is None:
        calls = calls[:1]
    read = read_calls(form.write(calls), form, TOOLS)
    assert [(call.name, call.arguments) for call in read.valid] == calls
    assert len({call.id for call in read.valid}) == len(calls)
    assert all(call.id.isalnum() and len(call.id) == 9 for call in read.valid)
    assert not read.invalid
    assert not read.content


BROKEN = [
    '{"name": "weather", "arguments": {"city": "Os',
    '{"name": "nobody", "arguments": {}}',
    '{"name": "clock", "arguments": [1]}',
    '{"name": 3}',
]


@pytest.mark.parametrize("broken", BROKEN)
def test_malformed_calls_are_kept(broken: str) -> None:
    for text, form in (
        (f"Well.\n<tool_call>\n{broken}\n</tool_call>", HERMES),
        (f"Well.\n<tool_call>\n{broken}", HERMES),
        (f"Well.[TOOL_CALLS] [{broken}]", MISTRAL),
        (f"Well.[TOOL_CALLS]{broken}", MISTRAL_NAMED),
        (broken, LLAMA),
        (f'{{"tool_calls": [{broken}]}}', GENERIC),
    ):
        read = read_calls(text, form, TOOLS)
        assert not read.valid
        [kept] = read.invalid
        assert broken in kept.text
        assert kept.error
        assert read.content == ("Well." if form.marker else "")


def test_plain_text_is_not_a_call() -> None:
    for form in FORMATS:
        for text in ("Hello.", '{"a": 1}', "", "[1, 2]"):
            assert read_calls(text, form, TOOLS).content == text


def test_one_good_call_among_bad_ones() -> None:
    good, bad = '{"name": "clock", "arguments": {}}', '{"name": "nobody"}'
    read = read_calls(f"[TOOL_CALLS] [{bad}, {good}, {bad}]", MISTRAL, TOOLS)
    assert [call.name for call in read.valid] == ["clock"]
    assert [call.name for call in read.invalid] == ["nobody", "nobody"]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize(
    "said", ["</tool_call>", "<tool_call>", "[TOOL_CALLS]", "[ARGS]", "]}", '{"tool_calls": [']
)
def test_markers_in_arguments_are_arguments(form: ToolFormat, said: str) -> None:
    calls = [("weather", {"city": said, said: [said]}), ("clock", {})][: 2 if form.between else 1]
    read = read_calls(form.write(calls), form, TOOLS)
    assert [(call.name, call.arguments) for call in read.valid] == calls
    assert not read.invalid


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("[TOOL_CALLS][]", MISTRAL),
        ("[TOOL_CALLS] [", MISTRAL),
        ("[TOOL_CALLS]", MISTRAL_NAMED),
        ("<tool_call>", HERMES),
        ('{"tool_calls": []}', GENERIC),
        ('{"tool_calls": [', GENERIC),
        ('{"tool_calls": {"a": [1]}}', GENERIC),
        ('{"tool_calls": "none, see [1]"}', GENERIC),
        ('{"name"', LLAMA),
    ],
)
def test_broken_answers_stay_as_content(text: str, form: ToolFormat) -> None:
    read = read_calls(text, form, TOOLS)
    assert read.content + "".join(call.text for call in read.invalid) == text
    assert read.invalid
    assert not read.valid


def test_text_after_calls_is_content() -> None:
    one = HERMES.write([("clock", {})])
    read = read_calls(f"Well.\n{one}\nDone.\n{one} Bye.", HERMES, TOOLS)
    assert len(read.valid) == 2
    assert not read.invalid
    assert read.content == "Well.\nDone.\nBye."
    read = read_calls(MISTRAL.write([("clock", {})]) + " Done.", MISTRAL, TOOLS)
    assert (len(read.valid), read.content) == (1, "Done.")


@pytest.mark.parametrize(
    "arguments",
    [
        "[" * 100_000,
        '{"a": ' * 5000,
        '{"a": NaN}',
        '{"a": "\\ud800"}',
        '{"a": ' + "[" * 200 + "]" * 200 + "}",
    ],
    ids=["open", "deep", "nan", "surrogate", "nested"],
)
def test_arguments_beyond_any_type_are_invalid(arguments: str) -> None:
    for form in FORMATS:
        text = form.begin + form.head_of("clock") + arguments + form.tail + form.end
        read = read_calls(text, form, TOOLS)
        assert not read.valid
        assert read.invalid


def test_numbers_beyond_floats_are_the_largest() -> None:
    text = LLAMA.head_of("clock") + '{"a": 1e999, "b": -12E+4000}}'
    [call] = read_calls(text, LLAMA, TOOLS).valid
    assert call.arguments["a"] == -call.arguments["b"] > 1e308
    assert ToolCall.model_validate_json(call.model_dump_json()) == call


def test_a_control_token_differs_from_its_spelling() -> None:
    codec = Codec(tokenizer_of("mistral"))
    form = format_as_seen(MISTRAL, codec)
    spelled = "The marker [TOOL_CALLS] tells that calls follow."
    ids = codec.encode(spelled)
    assert read_calls(marked_text(codec, (), ids, spelled), form, TOOLS) == Calls(spelled)
    ids = codec.encode_rendered('Well. [TOOL_CALLS] [{"name": "clock", "arguments": {}}]')
    text = codec.completion_text((), ids)[0]
    read = read_calls(marked_text(codec, (), ids, text), form, TOOLS)
    assert (read.content, [call.name for call in read.valid]) == ("Well.", ["clock"])
    broken = codec.encode_rendered("[TOOL_CALLS] [{")
    read = read_calls(marked_text(codec, (), broken, " [{"), form, TOOLS)
    assert [call.text for call in read.invalid] == ["{"]


def test_a_tag_without_a_call_is_text() -> None:
    call = LLAMA.write([("clock", {})])
    for text in ("<|python_tag|> is a token.", "<|python_tag|>", f"\x1c{call}"):
        assert read_calls(text, LLAMA, TOOLS).content == text
    tagged = read_calls("<|python_tag|>" + call, LLAMA, TOOLS)
    assert [call.name for call in tagged.valid] == ["clock"]


def test_incomplete_calls() -> None:
    for form in FORMATS:
        whole = (form.marker or form.first) + " "
        assert all(may_be_a_call(whole[:size], form) for size in range(1, len(whole)))
        assert not may_be_a_call("Well", form)
        assert not may_be_a_call("", form)


def test_equal_answers_to_other_prompts_have_other_ids() -> None:
    text = LLAMA.write([("clock", {})])
    ids = {read_calls(text, LLAMA, TOOLS, salt=salt).valid[0].id for salt in ("1,2", "1,3")}
    assert len(ids) == 2


def test_closing_tags_are_no_content() -> None:
    tokenizer = tokenizer_of("hermes")
    tags = {"additional_special_tokens": ["<tool_call>", "</tool_call>"]}
    tokenizer.add_special_tokens(tags)
    codec = Codec(tokenizer)
    form = format_as_seen(HERMES, codec)
    ids = codec.encode_rendered("Hi\n" + HERMES.write([("clock", {}), ("clock", {})]))
    text = codec.completion_text((), ids)[0]
    read = read_calls(marked_text(codec, (), ids, text), form, TOOLS)
    assert (len(read.valid), read.content, read.invalid) == (2, "Hi", ())
    whole = HERMES.write([("clock", {})])
    for size in range(1, len("\n</tool_call>")):
        read = read_calls(whole[:-size], HERMES, TOOLS)
        assert (len(read.valid), read.content, read.invalid) == (1, "", ())


def test_calls_without_a_marker() -> None:
    one, bad = '{"name": "clock", "arguments": {}}', '{"name": "nobody"}'
    read = read_calls(f"<tool_call>{one} {bad}</tool_call> Well.", HERMES, TOOLS)
    assert [call.name for call in read.valid] == ["clock"]
    assert [call.text for call in read.invalid] == [bad]
    assert read.content == "Well."
    read = read_calls(f"{one}; {one} Well.", LLAMA, TOOLS)
    assert (len(read.valid), read.content) == (2, "Well.")


def test_control_tokens_within_arguments_are_text() -> None:
    codec = Codec(tokenizer_of("mistral"))
    written = MISTRAL.write([("clock", {"c": "[TOOL_CALLS] x"})])
    ids = codec.encode_rendered(written)
    text = codec.completion_text((), ids)[0]
    [call] = read_calls(
        marked_text(codec, (), ids, text), format_as_seen(MISTRAL, codec), TOOLS
    ).valid
    assert call.arguments == {"c": "[TOOL_CALLS] x"}


def test_keys_similar_to_those_of_calls() -> None:
    for text, form in (
        ('{"na me": 1}', LLAMA),
        ('{"to ol_calls": 1}', GENERIC),
        ('"name": 1', LLAMA),
    ):
        assert read_calls(text, form, TOOLS) == Calls(text)

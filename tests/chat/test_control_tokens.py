"""Control tokens in user text stay text, in every position and every family of templates."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stars_engine import Chat, Message, RenderedPrompt, Tool, ToolCall
from stars_engine.chat.conversations import read_conversation
from stars_engine.chat.formats import GENERIC
from stars_engine.chat.prompts import resolve_prompt
from stars_engine.chat.template import encode_rendered, render
from stars_engine.chat.turns import tools_of, turns_of
from stars_engine.rewards.encoding import TextTemplate
from stars_engine.tokenization.codec import Codec
from tests.support.chat_templates import FAMILIES, Family, tokenizer_of_family
from tests.support.codecs import make_codec
from tests.support.published_templates import CONTROL, NO_SYSTEM, PUBLISHED, template_of

MARKED = ("<|extra|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "</tool_response>")
PLAIN = "Z"  # stands where a token is injected, in the conversation to compare with


@cache
def codec_of(name: str, *, special: bool) -> Codec:
    """A published family's tokenizer, with all its markers special or none but the first three."""
    template = template_of(name)
    found = tuple(dict.fromkeys(["<s>", "</s>", *CONTROL.findall(template), *MARKED]))
    control, ordinary = (found, ()) if special else (found[:2], found[2:])
    return Codec(tokenizer_of_family(Family(template, control, "</s>", ordinary)))


KINDS = [(name, special) for name in PUBLISHED for special in (True, False)]
EACH = pytest.mark.parametrize(("name", "special"), KINDS)


def borders(codec: Codec, ids: Sequence[int]) -> list[int]:
    reserved = set(codec.tokenizer.convert_tokens_to_ids(list(codec.reserved_tokens)))
    return [token for token in ids if token in reserved]


def read(codec: Codec, chat: Chat) -> tuple[int, ...]:
    return read_conversation(chat, codec).token_ids


def said(content: str, role: str = "user", **more: Any) -> Message:
    return Message(role=role, content=content, **more)


def positions(name: str) -> dict[str, Callable[[str], Chat]]:
    """Conversations with a text at one position each."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = Tool(name="weather", description="Tells.", parameters=schema)

    def chat(
        *,
        user: str = "Hi",
        system: str = "",
        result: str = "7",
        key: str = "city",
        value: str = "Oslo",
        called: str = "weather",
        tools: Sequence[Tool] = (tool,),
    ) -> Chat:
        call = ToolCall(name=called, arguments={key: value}, id="abcdef123")
        turns = [said(system, "system")] if system else []
        turns += [said(user)]
        if tools:
            turns.append(said("", "assistant", tool_calls=(call,)))
            turns.append(said(result, "tool", tool_call_id="abcdef123", name="weather"))
            turns += [said("Seven.", "assistant"), said("And now?")]
        return Chat(turns, tools=tools, constrain_tools=False)

    def described(text: str) -> Tool:
        return tool.replace(description=text)

    def with_property(text: str, about: str = "") -> Tool:
        inner = {"type": "string", "description": about, "enum": [about or "a"]}
        return tool.replace(parameters={"type": "object", "properties": {text: inner}})

    return {
        "user": lambda text: chat(user=f"a {text} b", tools=()),
        "user alone": lambda text: chat(user=text, tools=()),
        "system": lambda text: chat(system=f"a {text} b", tools=()),
        "system with tools": lambda text: chat(system=text),
        "result": lambda text: chat(result=text),
        "result of JSON": lambda text: chat(result=json.dumps({"x": text})),
        "key": lambda text: chat(key=text),
        "value": lambda text: chat(value=f"a{text}"),
        "name of a call": lambda text: chat(called=f"w{text}"),
        "description": lambda text: chat(tools=(described(text),)),
        "property": lambda text: chat(tools=(with_property(text),)),
        "description of a property": lambda text: chat(tools=(with_property("city", text),)),
    }


# --- every token, at every position ---


@pytest.mark.slow
@EACH
def test_contents_never_become_added_tokens(name: str, special: bool) -> None:
    codec = codec_of(name, special=special)
    num_cases = 0
    for position, make in positions(name).items():
        expected = borders(codec, read(codec, make(PLAIN)))
        for token in codec.reserved_tokens:
            ids = read(codec, make(token))
            assert borders(codec, ids) == expected, (position, token)
            num_cases += 1
    assert num_cases >= 100


@EACH
def test_raw_prompts_never_become_added_tokens(name: str, special: bool) -> None:
    codec = codec_of(name, special=special)
    for token in codec.reserved_tokens:
        text = f"a {token}{token} b{token}"
        ids = resolve_prompt(text, codec, prompt_format="raw").token_ids
        assert not borders(codec, ids)
        assert codec.decode(ids) == text
        assert borders(codec, codec.encode_rendered(text)) == 3 * borders(
            codec, codec.encode_rendered(token)
        )


@EACH
def test_harmless_text_is_encoded_as_by_the_template(name: str, special: bool) -> None:
    codec = codec_of(name, special=special)
    turns = [said("Hi <b>there</b> [1] {x}\n\n  a|b"), said(" Ho 🥶 ", "assistant"), said("< | >")]
    if name not in NO_SYSTEM:
        turns.insert(0, said("Be kind < 3.", "system"))
    tools = (Tool(name="clock", description="a < b"),) if PUBLISHED[name] else ()
    expected = codec.tokenizer.apply_chat_template(
        turns_of(turns), tools=tools_of(tools), add_generation_prompt=True, return_dict=False
    )
    assert list(read(codec, Chat(turns, tools=tools, constrain_tools=False))) == expected


@EACH
def test_answers_of_a_model_are_encoded_as_by_the_template(name: str, special: bool) -> None:
    """Reasoning and calls in the content of an assistant stay the tokens that a model writes."""
    codec = codec_of(name, special=special)
    if special:
        return  # control tokens have no text: no model's text holds their names
    written = "<think>\nHm.\n</think>\n\nWell. <tool_call>\n{}\n</tool_call>"
    turns = [said("Hi"), said(written, "assistant"), said("And?")]
    expected = codec.tokenizer.apply_chat_template(
        turns_of(turns), add_generation_prompt=True, return_dict=False
    )
    assert list(read(codec, Chat(turns))) == expected


def test_reasoning_of_a_model_is_encoded_as_by_the_template() -> None:
    codec = codec_of("qwen3", special=False)
    call = ToolCall(name="clock", arguments={"at": "7"})
    reasoning = said("", "assistant", reasoning="Hm <think>", tool_calls=(call,))
    turns = [said("Hi"), reasoning, said("7", "tool")]
    expected = codec.tokenizer.apply_chat_template(
        turns_of(turns), add_generation_prompt=True, return_dict=False
    )
    assert list(read(codec, Chat(turns))) == expected


# --- fuzzed ---


def fuzzed(seed: int, count: int) -> Iterator[tuple[str, Codec, Any, Any]]:
    """Prompts with tokens, halves of them and noise, and the same without."""
    rng = random.Random(seed)
    kinds = [(name, codec_of(name, special=special)) for name, special in KINDS]
    for _ in range(count):
        name, codec = rng.choice(kinds)
        pieces = [rng.choice(codec.reserved_tokens) for _ in range(3)]
        halves = [piece[: rng.randrange(1, len(piece))] for piece in pieces]
        rests = [piece[rng.randrange(len(piece)) :] for piece in pieces]
        noise = [" ", "\n", "é", '"', "\\", "{", "<", "|", "\ufdd0", "\ufdef\ufdee", "x"]
        text = "".join(rng.choice([*pieces, *halves, *rests, *noise]) for _ in range(8))
        if rng.random() < 0.2:
            yield name, codec, f"q{text}", None
        else:
            make = rng.choice(list(positions(name).values()))
            yield name, codec, make(f"q{text}"), make("q")


def check_fuzzed(seed: int, count: int) -> None:
    for name, codec, prompt, neutral in fuzzed(seed, count):
        ids = resolve_prompt(prompt, codec, prompt_format="raw").token_ids
        expected = [] if neutral is None else borders(codec, read(codec, neutral))
        assert borders(codec, ids) == expected, (name, prompt)


@pytest.mark.slow
def test_fuzzed_prompts_never_contain_control_tokens() -> None:
    check_fuzzed(seed=0, count=400)


# --- tokenizers of other kinds ---


def with_normalizer() -> Codec:
    """Lower case, and added tokens that are looked for in normalised text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    backend.add_tokens([AddedToken("<tool_call>", normalized=True), AddedToken("<|user|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m.content }}</s>{% endfor %}"
    return Codec(tokenizer)


@pytest.mark.parametrize("typed", ["<TOOL_CALL>", "＜tool_call＞", "<Tool_Call>", "<|USER|>"])
def test_text_that_normalises_to_a_token_is_text(typed: str) -> None:
    codec = with_normalizer()
    assert borders(codec, codec.tokenizer(typed)["input_ids"])  # the tokenizer's own way
    assert not borders(codec, codec.encode(typed))
    shown = borders(codec, read(codec, Chat([said(f"a{typed}b")])))
    assert shown == borders(codec, read(codec, Chat([said("ab")])))


def test_tokens_that_strip_spaces_still_do() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken("<|user|>", rstrip=True), AddedToken("<|end|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = "{% for m in messages %}<|user|>\n{{ m.content }}<|end|>{% endfor %}"
    codec = Codec(tokenizer)
    expected = tokenizer.apply_chat_template(turns_of([said("ab")]), return_dict=False)
    assert list(read(codec, Chat([said("ab")]))) == expected
    assert len(read(codec, Chat([said("<|end|>")]))) == len(expected) - 2 + len("<|end|>")


@pytest.mark.parametrize("name", FAMILIES)
def test_halves_of_tokens_do_not_join(name: str) -> None:
    codec = Codec(tokenizer_of_family(FAMILIES[name]))
    for token in codec.reserved_tokens:
        for size in range(1, len(token)):
            chat = Chat([said(token[size:] + "x" + token[:size])])
            expected = borders(codec, read(codec, Chat([said("x")])))
            assert borders(codec, read(codec, chat)) == expected


def test_words_that_templates_write_are_plain_words() -> None:
    """Added tokens that are blanks, characters or words are vocabulary."""
    ordinary = ("user", "assistant", "\n\n", "  ", "café", "C++", "🤖", "!")
    family = FAMILIES["hermes"]
    tokenizer = tokenizer_of_family(Family(family.template, family.control, family.end, ordinary))
    codec = Codec(tokenizer)
    assert not {*ordinary} & {*codec.reserved_tokens}
    text = "A user, an assistant:\n\n  a café in C++ 🤖!"
    assert codec.encode(text) == tokenizer(text)["input_ids"]
    assert codec.decode(codec.encode(text)) == text
    expected = tokenizer.apply_chat_template(
        turns_of([said(text)]), add_generation_prompt=True, return_dict=False
    )
    assert list(read(codec, Chat([said(text)]))) == expected


@pytest.mark.parametrize("position", ["key", "property", "value", "result", "user"])
@pytest.mark.parametrize("typed", ["EOT", "__end__", "xEOT", "EOTEOT", "END_OF_TURN"])
def test_control_tokens_that_are_names_are_text(position: str, typed: str) -> None:
    """Templates read keys that are identifiers, but not these."""
    family = FAMILIES["hermes"]
    control = (*family.control, "EOT", "__end__", "END_OF_TURN")
    codec = Codec(tokenizer_of_family(Family(family.template, control, family.end)))
    make = positions("hermes")[position]
    assert borders(codec, read(codec, make(typed))) == borders(codec, read(codec, make(PLAIN)))


_XML = """
{%- for message in messages %}<|im_start|>{{ '<' ~ (message.content | trim) ~ '>' }}<|im_end|>
{%- endfor %}{% for tool in tools or [] %}
{%- for key, value in tool.function.parameters.items() %}{{ '<' ~ key ~ '>' ~ value ~ '</' ~ key }}>
{%- endfor %}{{ tool.function.name }}{% endfor %}
"""


@pytest.mark.parametrize(
    "typed", ["tool_call", "/tool_call", "|im_end|", "im_end|", "|im_end", "think", "tool_call>"]
)
def test_templates_that_write_brackets_around_texts(typed: str) -> None:
    """Templates of Qwen3-Coder write the keys of schemas as tags."""
    control, end = FAMILIES["hermes"].control, "<|im_end|>"
    codec = Codec(tokenizer_of_family(Family(_XML, control, end, MARKED)))
    for text in (typed, f"  {typed}\n"):
        expected = borders(codec, read(codec, Chat([said(PLAIN)])))
        assert borders(codec, read(codec, Chat([said(text)]))) == expected

    def with_key(key: str) -> Chat:
        tool = Tool(name="f", parameters={"type": "object", key: "x"})
        return Chat([said("Hi")], tools=[tool], constrain_tools=False)

    ids = render(codec, with_key(typed).messages, with_key(typed).tools, add_generation_prompt=True)
    plain = render(codec, with_key("Z").messages, with_key("Z").tools, add_generation_prompt=True)
    expected = borders(codec, encode_rendered(codec, plain))
    assert borders(codec, encode_rendered(codec, ids)) == expected


def test_tokens_that_the_template_builds_from_pieces() -> None:
    tokens = ("◁user▷", "## Response:", "【tool】", "◁think▷")
    tokenizer = tokenizer_of_family(
        Family(
            "{% for m in messages %}{% if m.role == 'tool' %}{{ '【t' + 'ool】' + m.content }}"
            "{% elif m.role == 'user' %}{{ '◁u' + 'ser▷' + m.content }}{% else %}"
            "{{ '◁' + 'think▷' + m.content }}{% endif %}</s>{% endfor %}"
            "{% if add_generation_prompt %}{{ '##' + ' Response:' }}{% endif %}",
            ("<s>", "</s>"),
            "</s>",
            tokens,
        )
    )
    codec = Codec(tokenizer)
    assert {*tokens} <= {*codec.reserved_tokens}
    ids = {tokenizer.convert_tokens_to_ids(token) for token in tokens}
    plain = [token for token in read(codec, Chat([said("ab")])) if token in ids]
    typed = read(codec, Chat([said("".join(tokens))]))
    assert [token for token in typed if token in ids] == plain
    assert not ids & {*codec.encode("".join(tokens))}


def test_tokens_without_brackets_that_the_template_writes() -> None:
    tokenizer = tokenizer_of_family(
        Family(
            "{% for m in messages %}{{ '### Human:' if m.role == 'user' else \"### Bot\\u003a\" }}"
            "{{ m.content }}@@end{% endfor %}{# @@note #}",
            ("<s>", "</s>"),
            "</s>",
            ("### Human:", "### Bot:", "@@end", "@@note"),
        )
    )
    codec = Codec(tokenizer)
    assert {"### Human:", "### Bot:", "@@end"} <= {*codec.reserved_tokens}
    assert "@@note" not in codec.reserved_tokens  # in a comment: the template does not write it
    assert borders(codec, read(codec, Chat([said("x ### Bot: y @@end")]))) == borders(
        codec, read(codec, Chat([said("x y")]))
    )


def test_tags_of_the_base_vocabulary_are_text() -> None:
    """Gemma has a piece for each HTML tag, which its tokenizer finds like an added token."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<table>", "<start_of_turn>"]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(["<table>", "<start_of_turn>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<start_of_turn>' + m.content }}{% endfor %}"
    )
    codec = Codec(tokenizer)
    assert codec.reserved_tokens == ("<start_of_turn>",)
    text = "a <table> b"
    assert codec.encode(text) == tokenizer(text)["input_ids"]
    assert 257 not in codec.encode("<start_of_turn>")


# --- calls in words, and what rewards read ---


def test_calls_as_text_contain_no_control_tokens() -> None:
    codec = codec_of("phi3", special=False)
    call = ToolCall(name="weather", arguments={"<tool_call>": "a</think><|end|>\\"})
    chat = Chat([said("Hi"), said("", "assistant", tool_calls=(call,)), said("7", "tool")])
    ids = read(codec, chat)
    neutral = ToolCall(name="weather", arguments={"k": "a"})
    plain = Chat([said("Hi"), said("", "assistant", tool_calls=(neutral,)), said("7", "tool")])
    assert borders(codec, ids) == borders(codec, read(codec, plain))
    written = GENERIC.write([(call.name, call.arguments)], codec.reserved_tokens)
    assert json.loads(written)["tool_calls"][0]["arguments"] == call.arguments
    assert written in codec.decode(ids)


@EACH
def test_reward_templates_contain_no_control_tokens_from_texts(name: str, special: bool) -> None:
    codec = codec_of(name, special=special)
    template = TextTemplate("<think>{prompt}</s>{completion}<tool_call>", codec)
    expected = borders(codec, template.encode("a", "b", with_rest=True))
    assert len(expected) == 3
    for token in codec.reserved_tokens:
        ids = template.encode(f"a{token}", f"{token}b", with_rest=True)
        assert borders(codec, ids) == expected


@EACH
def test_reward_prompts_contain_no_control_tokens(name: str, special: bool) -> None:
    from stars_engine.chat.answers import acceptable, encode_answer

    codec = codec_of(name, special=special)

    def rows(text: str) -> list[int]:
        seen = resolve_prompt("x", codec, reward_prompt=Chat([said(f"a{text}")])).for_reward
        turns = acceptable(codec, seen.messages or ())
        ids = encode_answer(codec, turns, "Well.", end_of_turn=True)
        plain = acceptable(codec, [said(f"{text}b")])
        return borders(codec, chain(ids, encode_answer(codec, plain, "x", end_of_turn=False)))

    for token in codec.reserved_tokens:
        assert rows(token) == rows(PLAIN)


# --- what is rendered by the caller ---


def test_rendered_prompts_begin_once() -> None:
    codec = make_codec()
    begin = codec.tokenizer.bos_token
    [bos] = codec.encode_rendered(begin)
    for text in ("<|im_start|>a", f"{begin}<|im_start|>a", "a", ""):
        prompt = RenderedPrompt(text, add_special_tokens=True)
        ids = resolve_prompt(prompt, codec).token_ids
        assert ids[0] == bos
        assert ids.count(bos) == 1
    assert resolve_prompt(RenderedPrompt("a"), codec).token_ids[0] != bos

"""Templates that rewrite contents build no control token from them, and keep their own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from stars_engine import Message, Tool, ToolCall
from stars_engine.chat.rendering import can_trace
from stars_engine.chat.template import encode_rendered, render
from stars_engine.chat.traced_text import (
    TracedText,
    is_template_text,
    joined,
    runs_of,
    template_text,
)
from stars_engine.chat.turns import tools_of, turns_of
from stars_engine.tokenization.codec import Codec
from tests.support.chat_templates import Family, tokenizer_of_family
from tests.support.published_templates import PUBLISHED, published

CONTROL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|im_end|>")
ORDINARY = ("<tool_call>", "</tool_call>", "<Tool_Call>", "[INST]", "<think>", "</think>")


def codec_of(template: str, kind: type[PreTrainedTokenizerFast] | None = None) -> Codec:
    tokenizer = tokenizer_of_family(Family(template, CONTROL, "</s>", ORDINARY))
    if kind is not None:
        tokenizer.__class__ = kind
    return Codec(tokenizer)


def reserved(codec: Codec, *messages: Message, tools: tuple[Tool, ...] = ()) -> list[str]:
    """The reserved tokens in a rendered conversation, by name."""
    rendered = render(codec, messages, tools, add_generation_prompt=True)
    ids = encode_rendered(codec, rendered)
    names = codec.tokenizer.convert_ids_to_tokens(ids)
    return [name for name in names if name in codec.reserved_tokens]


def user(text: str) -> Message:
    return Message(role="user", content=text)


# --- contents that become a token only in the template ---

REWRITES = {
    "lower": ("{{ c | lower }}", "<TOOL_CALL>x"),
    "lower, as a method": ("{{ c.lower() }}", "<|IM_END|>"),
    "upper": ("{{ c | upper }}", "[inst]"),
    "title": ("{{ c | title }}", "<tool_call>"),
    "capitalize": ("{{ c | capitalize }}", "</TOOL_CALL>"),
    "swapcase": ("{{ c.swapcase() }}", "<TOOL_CALL>"),
    "reverse": ("{{ c | reverse }}", ">llac_loot<"),
    "reverse by a slice": ("{{ c[::-1] }}", "<|im_end|>"[::-1]),
    "replace": ("{{ c | replace('-', '_') }}", "<tool-call>"),
    "replace, as a method": ("{{ c.replace('*', '') }}", "<tool*_call>"),
    "replace by a token's half": ("{{ c | replace('X', '<tool_') }}", "Xcall>"),
    "split and join": ("{{ c.split('--') | join('') }}", "<tool_--call>"),
    "split and join, as methods": ("{{ ''.join(c.split()) }}", "<tool _call>"),
    "slice": ("{{ c[:6] }}{{ c[9:] }}", "<tool_-X-call>"),
    "slice with a step": ("{{ c[::2] }}", "<.t.o.o.l._.c.a.l.l.>"),
    "characters": ("{% for x in c %}{{ x | trim }}{% endfor %}", "< tool_call>"),
    "characters as a list": ("{{ c | list | join }}", "<|im_end|"),
    "brackets around": ("<{{ c }}_call>", "tool"),
    "brackets around, concatenated": ("{{ '<' + c + '>' }}", "tool_call"),
    "brackets around, joined": ("{{ '<' ~ c ~ '>' }}", "/think"),
    "brackets around, formatted": ("{{ '<%s>' % c }}", "tool_call"),
    "brackets around, by format": ("{{ '<{}_call>'.format(c) }}", "tool"),
    "brackets around, by a filter": ("{{ '<%s>' | format(c) }}", "think"),
    "brackets around, by join": ("{{ ['<', c, '>'] | join }}", "tool_call"),
    "between two contents": ("{{ c }}_{{ 'call>' }}", "<tool"),
    "in a macro": ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(c) | lower }}", "TOOL_CALL"),
    "in a block": ("{% set b %}<{{ c }}{% endset %}{{ b | trim }}>", "think"),
    "in a namespace": (
        "{% set n = namespace(t='<') %}{% set n.t = n.t + c %}{{ n.t + '>' }}",
        "think",
    ),
    "in a filter block": ("{% filter lower %}<T{{ c }}>{% endfilter %}", "OOL_CALL"),
    "trim of other characters": ("<{{ c.strip('*') }}>", "**tool_call*"),
    "truncate": ("{{ c | truncate(12, true, '>') }}", "<tool_call and more words"),
    "wordwrap": ("{{ c | wordwrap(6, wrapstring='') }}", "<tool_ call>"),
    "indent": ("{{ c | indent(0) }}", "<tool_call\n>"),
    "JSON": ("{{ {'x': c} | tojson | replace('\\\\n', '') }}", "<tool\n_call>"),
    "numbers": ("{{ '<%d|im_end|>' % 7 }}{{ c[0] }}", "<"),
    "repeated": ("{{ c * 2 }}", "call><tool_"),
    "html": ("{{ c | striptags }}", "<<b>|im_end|>"),
    "safe": ("{{ ('<' + c + '>') | safe }}", "think"),
    "url": ("{{ c | urlencode | replace('%3C', '<') | replace('%3E', '>') }}", "<think>"),
}


@pytest.mark.parametrize("kind", REWRITES)
def test_rewritten_contents_are_text(kind: str) -> None:
    rewritten, content = REWRITES[kind]
    codec = codec_of(
        f"{{% for m in messages %}}<|user|>{{% set c = m.content %}}{rewritten}</s>{{% endfor %}}"
    )
    assert reserved(codec, user(content)) == ["<|user|>", "</s>"]


@pytest.mark.parametrize("kind", REWRITES)
def test_rewritten_contents_have_the_text_of_the_template(kind: str) -> None:
    rewritten, content = REWRITES[kind]
    codec = codec_of(f"{{% set c = messages[0].content %}}{rewritten}")
    for text in (content, "Some Words-and * more --x", "a", "äß\n\n b"):
        if any(token in text for token in codec.reserved_tokens):
            continue
        expected = codec.tokenizer.apply_chat_template(turns_of([user(text)]), tokenize=False)
        assert render(codec, [user(text)], add_generation_prompt=False).text == expected


@pytest.mark.parametrize("position", ["key", "value", "name", "description", "result"])
def test_rewritten_calls_and_tools_are_text(position: str) -> None:
    codec = codec_of(
        "{% for m in messages %}<|user|>{% if m.tool_calls %}{% for c in m.tool_calls %}"
        "<{{ c.function.name }}>{% for k, v in c.function.arguments.items() %}<{{ k }}>"
        "{{ v | lower }}{% endfor %}{% endfor %}{% elif m.role == 'tool' %}{{ m.content[::-1] }}"
        "{% endif %}{% endfor %}"
        "{% for t in tools or [] %}{{ '<' + t.function.description | lower }}>{% endfor %}</s>"
    )
    texts = dict.fromkeys(["key", "value", "name", "description", "result"], "z")
    plain = dict(texts)
    typed = {"value": "<THINK>", "description": "TOOL_CALL", "result": ">kniht<"}
    texts[position] = typed.get(position, "tool_call")

    def found(of: dict[str, str]) -> list[str]:
        call = ToolCall(name=of["name"], arguments={of["key"]: of["value"]}, id="1")
        messages = [
            user("Hi"),
            Message(role="assistant", content="", tool_calls=(call,)),
            Message(role="tool", content=of["result"], tool_call_id="1"),
        ]
        return reserved(codec, *messages, tools=(Tool(name="f", description=of["description"]),))

    assert found(texts) == found(plain)


# --- the template's own tokens ---

OWN = {
    "data": "<|user|>",
    "a string": "{{ '<|user|>' }}",
    "pieces": "{{ '<|' + messages[0].role + '|>' }}",
    "pieces, joined": "{{ '<|' ~ messages[0]['role'] ~ '|>' }}",
    "pieces around an output": "<|{{ messages[0].role }}|>",
    "formatted": "{{ '<|%s|>' % messages[0].role }}",
    "by format": "{{ '<|{}|>'.format(messages[0].role) }}",
    "by format with a name": "{{ '<|{r}|>'.format(r=messages[0].role) }}",
    "by a filter": "{{ '<|%s|>' | format(messages[0].role) }}",
    "a list": "{{ ['<|', messages[0].role, '|>'] | join('') }}",
    "a list, as a method": "{{ ''.join(['<|', messages[0].role, '|>']) }}",
    "attributes": "<|{{ messages | join('', attribute='role') }}|>",
    "lower case": "{{ '<|USER|>' | lower }}",
    "a role in lower case": "<|{{ messages[0].role | upper | lower }}|>",
    "replaced": "{{ '<|ROLE|>' | replace('ROLE', messages[0].role) }}",
    "split": "{{ '<|user|>,<|assistant|>'.split(',')[0] }}",
    "a slice": "{{ 'xx<|user|>'[2:] }}",
    "reversed": "{{ '>|resu|<' | reverse }}",
    "trimmed": "{{ '  <|user|> ' | trim }}",
    "a mapping": "{% set names = {'user': '<|user|>'} %}{{ names[messages[0].role] }}",
    "a choice": "{{ '<|user|>' if messages[0].role == 'user' else '<|assistant|>' }}",
    "a default": "{{ nothing | default('<|user|>') }}",
    "a macro": "{% macro m(role) %}<|{{ role }}|>{% endmacro %}{{ m(messages[0].role) }}",
    "a macro, trimmed": "{% macro m() %} <|user|> {% endmacro %}{{ m() | trim }}",
    "a call block": "{% macro m()%}{{ caller() }}{% endmacro %}{% call m()%}<|user|>{% endcall %}",
    "a block of a set": "{% set b %}<|{{ messages[0].role }}|>{% endset %}{{ b }}",
    "a filter block": "{% filter trim %} <|user|> {% endfilter %}",
    "a namespace": "{% set n = namespace(t='') %}{% set n.t = n.t + '<|user|>' %}{{ n.t }}",
    "generation": "{% generation %}<|user|>{% endgeneration %}",
    "a constant expression": "{{ '<|' ~ ('user' | trim) ~ '|>' }}",
    "before contents": "{{ '<|user|>' + messages[0].content }}",
    "around contents": "{{ messages[0].content ~ '<|user|>' }}",
    "in place of contents": "{{ ('A' + messages[0].content) | replace('A', '<|user|>') }}",
    "beside contents": "{{ (' <|user|>' + messages[0].content).strip() }}",
    "split off contents": "{{ (messages[0].content + '|-|<|user|>').split('|-|')[1] }}",
    "lines": "{{ (messages[0].content + '\\n<|user|>').splitlines()[-1] }}",
    "a part": "{{ (messages[0].content + '=<|user|>').partition('=')[2] }}",
}


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("content", ["Hi", "", "<|user|>"])
def test_tokens_of_the_template_stay_tokens(kind: str, content: str) -> None:
    assert reserved(codec_of(OWN[kind]), user(content)) == ["<|user|>"]


def test_named_special_tokens_stay_tokens() -> None:
    codec = codec_of("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    assert reserved(codec, user("x")) == ["<s>", "</s>"]
    assert reserved(codec, user("</s>")) == ["<s>", "</s>"]


def test_what_an_assistant_wrote_stays_a_token() -> None:
    codec = codec_of(
        "{% for m in messages %}<|user|>{% if '</think>' in m.content %}"
        "{{ m.content.split('</think>')[0].strip() + '</think>' }}{% else %}{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    written = Message(role="assistant", content="<think>Hm</think>\n\nYes")
    assert reserved(codec, written) == ["<|user|>", "<think>", "</think>"]
    assert reserved(codec, user(written.content)) == ["<|user|>"]
    shouted = Message(role="assistant", content="<THINK>Hm")
    assert reserved(codec_of("{{ messages[0].content | lower }}"), shouted) == []


def test_variables_of_callers_are_contents() -> None:
    codec = codec_of("{{ style | lower }}<|user|>{{ messages[0].content }}")
    rendered = render(
        codec, [user("x")], add_generation_prompt=True, template_kwargs={"style": "<THINK>"}
    )
    names = codec.tokenizer.convert_ids_to_tokens(encode_rendered(codec, rendered))
    assert [name for name in names if name in codec.reserved_tokens] == ["<|user|>"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates_have_their_text(name: str) -> None:
    codec = Codec(published(name))
    reasoned = Message(role="assistant", content=" Ho \n", reasoning="Hm, *so*.")
    turns = [user(" Hi <b>there</b>\n"), reasoned, user("And?")]
    rendered = render(codec, turns, add_generation_prompt=True)
    expected = codec.tokenizer.apply_chat_template(
        turns_of(turns), tokenize=False, add_generation_prompt=True
    )
    assert rendered.text == expected
    content = "".join(run for run, is_own in runs_of(rendered.text) if not is_own)
    assert "Hi <b>there</b>" in content
    assert not any(token in content for token in codec.reserved_tokens)


@pytest.mark.parametrize("name", [name for name, form in PUBLISHED.items() if form])
def test_published_templates_have_their_text_with_tools(name: str) -> None:
    codec = Codec(published(name))
    call = ToolCall(name="weather", arguments={"city": "Oslo", "days": [1, 2]}, id="1")
    turns = [
        user("Hi"),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content='{"t": 7}', tool_call_id="1"),
        Message(role="assistant", content="Seven."),
        user("And?"),
    ]
    schema = {"type": "object", "properties": {"city": {"type": "string", "description": "A <b>"}}}
    tools = (Tool(name="weather", description="Tells.", parameters=schema),)
    rendered = render(codec, turns, tools, add_generation_prompt=True)
    expected = codec.tokenizer.apply_chat_template(
        turns_of(turns), tools=tools_of(tools), tokenize=False, add_generation_prompt=True
    )
    assert rendered.text == expected


# --- tokenizers that render with code of their own ---


class OwnRendering(PreTrainedTokenizerFast):
    """Writes the conversation twice, as no other tokenizer does."""

    def apply_chat_template(self, *values: Any, **named: Any) -> Any:
        return "!" + super().apply_chat_template(*values, **named)


def test_tokenizers_with_rendering_of_their_own() -> None:
    codec = codec_of("{% for m in messages %}<|user|>{{ m.content }}</s>{% endfor %}", OwnRendering)
    assert not can_trace(codec.tokenizer)
    for token in codec.reserved_tokens:
        assert reserved(codec, user(f"a{token}{token}b")) == ["<|user|>", "</s>"]
    assert render(codec, [user("x")], add_generation_prompt=True).text == "!<|user|>x</s>"


# --- strings ---

# Letters that a template wrote, and those of contents, in any case.
OF_TEMPLATE, OF_CONTENT = "abcdefABCDEF<", "uvwxyzUVWXYZ>ßİ"
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "add to a str": lambda x, y: str.__str__(y) + x,
    "repeat": lambda x, y: x * 2 + 3 * y,
    "replace": lambda x, y: x.replace("a", y),
    "replace twice": lambda x, y: x.replace("u", y, 2),
    "replace nothing": lambda x, y: x.replace("", y),
    "join": lambda x, y: x.join([y, "u", y]),
    "split": lambda x, y: x.split("a") + y.split("u", 1),
    "rsplit": lambda x, y: x.rsplit("a", 1) + y.rsplit("vu"),
    "split at blanks": lambda x, y: f"{x} {y}".split() + (x + " " + y + "\n a").split(),
    "split at the last blank": lambda x, y: (" " + x + "  " + y + " a").rsplit(None, 1),
    "split lines": lambda x, y: (x + "\n\n" + y + "\ra").splitlines(),
    "split lines with ends": lambda x, y: (x + "\n\n" + y + "\r\n").splitlines(keepends=True),
    "partition": lambda x, y: (x + "b" + y).partition("b"),
    "rpartition": lambda x, y: (x + "b" + y).rpartition("b"),
    "strip": lambda x, y: (x + y).strip("au"),
    "strip sides": lambda x, y: x.lstrip("ab") + y.rstrip("uv"),
    "strip blanks": lambda x, y: (" " + x + y + " ").strip(),
    "strip all": lambda x, y: x.strip(str(x)) + y,
    "prefix": lambda x, y: x.removeprefix("a") + y.removesuffix("u"),
    "lower": lambda x, y: (x + y).lower(),
    "upper": lambda x, y: (x + y).upper(),
    "title": lambda x, y: (x + y).title(),
    "casefold": lambda x, y: (x + y).casefold(),
    "capitalize": lambda x, y: (x + y).capitalize(),
    "swapcase": lambda x, y: (x + y).swapcase(),
    "index": lambda x, y: (x + "a")[-1] + (y + "u")[0],
    "slice": lambda x, y: (x + y)[1:-1] + (x + y)[::-2],
    "iterate": lambda x, y: list(x + y),
    "center": lambda x, y: x.center(9) + y.ljust(9, "u") + x.rjust(7, "a"),
    "tabs": lambda x, y: (x + "\t" + y).expandtabs(4),
    "percent": lambda x, y: (x + "%s") % y,
    "others": lambda x, y: x.zfill(9) + y.translate({ord("u"): "v"}) + f"{x:>9}",
}


@pytest.mark.parametrize("kind", OPERATIONS)
def test_operations_equal_those_of_strings(kind: str) -> None:
    operate = OPERATIONS[kind]
    rng = random.Random(kind)

    def mixed() -> TracedText:
        parts: list[str] = []
        for _ in range(rng.randrange(5)):
            letters = "".join(rng.choices(OF_TEMPLATE, k=rng.randrange(4)))
            parts.append(template_text(letters))
            parts.append("".join(rng.choices(OF_CONTENT, k=rng.randrange(4))))
        return joined(parts)

    for _ in range(200):
        x, y = mixed(), mixed()
        result, expected = operate(x, y), operate(str.__str__(x), str.__str__(y))
        assert result == expected
        for text in [result] if isinstance(result, str) else result:
            for run, is_own in runs_of(text):
                assert not (is_own and {*run.lower()} & {*OF_CONTENT.lower()}), (x, y, text)


def test_traced_text_is_a_string() -> None:
    text = template_text("ab") + "c"
    assert text == "abc"
    assert {text: 1}["abc"] == 1
    assert type(str(text)) is TracedText
    assert runs_of(text) == [("ab", True), ("c", False)]
    assert runs_of("c" + template_text("ab")) == [("c", False), ("ab", True)]
    assert runs_of("abc") == [("abc", False)]
    assert is_template_text(text[:2])
    assert not is_template_text(text)
    for wrong in (lambda: text + 1, lambda: 1 + text, lambda: text["a"]):
        with pytest.raises(TypeError):
            wrong()

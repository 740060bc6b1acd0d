"""Grammars for answers with tools: text, calls, or either."""

from __future__ import annotations

import json
import re

from stars_engine.chat.argument_checks import arguments_schema
from stars_engine.chat.formats import CLOSING, OPENING, ToolFormat
from stars_engine.chat.replies import ReasoningMode
from stars_engine.config import EbnfGrammar
from stars_engine.errors import ConfigError, Problem
from stars_engine.json_schema import Layout
from stars_engine.json_schema.compiling import json_rules
from stars_engine.messages import Tool
from stars_engine.tokenization.codec import Codec

_ANYTHING = r"/(.|\n)*/"
# The layout of json.dumps, which models have learned to write.
_LAYOUT = Layout(comma=", ", colon=": ")
_BLANK = r"[ \t\r\n]"


def tool_grammar(
    tools: tuple[Tool, ...],
    form: ToolFormat,
    codec: Codec,
    *,
    must_call: bool,
    several: bool,
    compact: bool = False,
    reasoning_mode: ReasoningMode = "none",
) -> EbnfGrammar:
    """Return the grammar of answers that call tools in a model's own format.

    Args:
        tools: The tools that may be called, at least one.
        form: The format of calls.
        codec: The tokenizer, which determines which markers are control tokens.
        must_call: Whether the answer must contain a call.
        several: Whether the answer may contain several calls, if the format allows it.
        compact: Whether arguments have no spaces between their parts.
        reasoning_mode: "none"; "optional" if reasoning may precede the answer; "open" if the
            prompt has opened the reasoning.

    Raises:
        ConfigError: A grammar cannot express the arguments of a tool.
    """
    rules = []
    names = []
    for index, tool in enumerate(tools):
        rules.append(_arguments(f"arguments_{index}", tool, Layout() if compact else _LAYOUT))
        parts = [_spelt(form.head_of(tool.name), codec), f"arguments_{index}"]
        rules.append(f"call_{index}: " + " ".join([*parts, _spelt(form.tail, codec)]))
        names.append(f"call_{index}")
    rules.append("call: " + " | ".join(names))
    more = f" ({_spelt(form.between, codec)} call)*" if several and form.between else ""
    inner = f"call{more} {_spelt(form.end, codec)}"
    begin = _spelt(form.begin, codec)
    if form.tag in codec.control_tokens:
        begin = f"{_spelt(form.tag, codec)}?"
    rules.append(f"calls: {begin} {inner}")
    start = "calls"
    if not must_call:
        start, more_rules = _text_or_calls(form, codec, inner, thinks=reasoning_mode == "optional")
        rules += more_rules
    if reasoning_mode != "none":
        rules += [
            *_reasoning_rules(codec, is_open=reasoning_mode == "open"),
            f"BLANK: /{_BLANK}{{1,4}}/",
        ]
        before = "(reasoning BLANK?)?" if reasoning_mode == "optional" else "reasoning BLANK?"
        start = f"{before} ({start})"
    return EbnfGrammar(text="\n".join([f"start: {start}", *rules]))


def _arguments(name: str, tool: Tool, layout: Layout) -> str:
    """Return the grammar rules for a tool's arguments.

    Raises:
        ConfigError: A grammar cannot express the arguments.
    """
    try:
        return json_rules(name, arguments_schema(tool), layout, strict=tool.strict)
    except ValueError as error:
        message = (
            f"the arguments of {tool.name!r} cannot be expressed by a grammar: {error}. Hint: "
            f"remove that from the parameters of {tool.name!r}, or use Chat(constrain_tools=False) "
            "for unconstrained calls"
        )
        raise ConfigError("Chat", [Problem("tools", message)]) from None


def _reasoning_rules(codec: Codec, *, is_open: bool) -> list[str]:
    """Return the grammar rules for reasoning, which ends at its first closing tag."""
    if CLOSING in codec.control_tokens:
        opening = "" if is_open else _spelt(OPENING, codec)
        return [f"reasoning: {opening} inner {_spelt(CLOSING, codec)}", f"inner: {_ANYTHING}"]
    opening = "" if is_open else _escaped(OPENING)
    return [rf"reasoning[lazy]: /{opening}(.|\n)*?{_escaped(CLOSING)}/"]


def _text_or_calls(
    form: ToolFormat, codec: Codec, inner: str, *, thinks: bool
) -> tuple[str, list[str]]:
    # Text must not look like a call or like reasoning, which have their own rules.
    text = _ANYTHING
    if thinks and OPENING not in codec.control_tokens:
        text += rf" & ~/{_BLANK}*{_escaped(OPENING)}(.|\n)*/"
    if not form.marker:
        first = "".join(f"{_BLANK}*{_escaped(piece)}" for piece in _pieces(form.first))
        if form.tag and form.tag not in codec.control_tokens:
            first = f"{_BLANK}*({_escaped(form.tag)})?{first}"
        return "TEXT | calls", [rf"TEXT: {text} & ~/{first}(.|\n)*/"]
    if form.marker in codec.control_tokens:
        return "TEXT calls? | calls", [f"TEXT: {text}"]
    marker = _escaped(form.marker)
    rest = _spelt(form.begin.removeprefix(form.marker), codec)
    return f"TEXT | before {rest} {inner}", [
        rf"TEXT: {text} & ~/(.|\n)*{marker}(.|\n)*/",
        rf"before[lazy]: /(.|\n)*?{marker}/",
    ]


def _pieces(first: str) -> list[str]:
    """Split `{"name"` where JSON allows blanks."""
    return [first[0], first[1:]]


def _spelt(text: str, codec: Codec) -> str:
    """Return text as a sequence in a rule, with control tokens as tokens."""
    parts = []
    for piece, is_control in codec.split_control_tokens(text):
        if is_control:
            parts.append(f"<[{codec.tokenizer.convert_tokens_to_ids(piece)}]>")
        else:
            parts.append(json.dumps(piece))
    return " ".join(parts)


def _escaped(text: str) -> str:
    """Escape text for a regular expression between slashes."""
    text = re.sub(r"[][\\.^$|?*+(){}/]", r"\\\g<0>", text)
    return text.replace("\n", r"\n")

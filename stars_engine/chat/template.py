"""Render conversations with a tokenizer's chat template, without letting contents inject tokens.

A template turns messages into text whose reserved tokens mark roles, calls and reasoning. Only what
the template itself wrote becomes a reserved token. Characters of contents, typed by a user or
quoted in a document, stay text, even if the template rewrites them (`TracedText`).

Templates also look for tokens in contents, to leave out reasoning for example. They must not find
those of users. Reserved tokens in contents are *defused*: a mark is inserted into them before
rendering, and removed before encoding. Assistant messages are model output, so only control tokens
are defused in them: models write `<think>` as a token, and templates look for it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from stars_engine.chat.rendering import can_trace, render_traced
from stars_engine.chat.traced_text import (
    runs_of,
    template_text,
    with_template_spans,
)
from stars_engine.chat.turns import (
    TemplateMessage,
    mapped,
    roles_of,
    texts_of,
    tools_of,
    turns_of,
)
from stars_engine.errors import PromptError, StarsWarning
from stars_engine.messages import Message, Tool
from stars_engine.threads.give_way import give_way
from stars_engine.tokenization.added_tokens import template_sources, template_words
from stars_engine.tokenization.codec import Codec

# Values that templates compare with; they are never control tokens.
_WORDS = frozenset({"system", "user", "assistant", "tool", "function"})

_WRITTEN = ("content", "reasoning_content")  # model output in an assistant message
Change = Callable[[str], str]
TemplateKwargs = Mapping[str, Any]
NO_KWARGS: TemplateKwargs = MappingProxyType({})
_checked: WeakKeyDictionary[Codec, set[str]] = WeakKeyDictionary()

# Unicode noncharacters, which are not part of text for interchange.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class Rendered(NamedTuple):
    """Rendered text.

    Attributes:
        text: The text, with the mark inside the reserved tokens of contents. Only `TracedText` has
            characters that the template wrote.
        mark: A character that occurs in no content.
    """

    text: str
    mark: str


def has_template(codec: Codec) -> bool:
    """Return whether the tokenizer has a chat template."""
    return bool(getattr(codec.tokenizer, "chat_template", None))


def render(
    codec: Codec,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    add_generation_prompt: bool,
    mark: str | None = None,
    template_kwargs: TemplateKwargs = NO_KWARGS,
) -> Rendered:
    """Render messages with the reserved tokens in their contents defused.

    Args:
        codec: The tokenizer with the template.
        messages: The conversation.
        tools: The tools that the template describes.
        add_generation_prompt: Whether to start an assistant message at the end.
        mark: The mark for reserved tokens; the default is one that occurs in no content.
        template_kwargs: Further variables for the template.

    Raises:
        PromptError: The template rejects the messages, or they contain every noncharacter.
    """
    _warn_of_unread(codec, template_kwargs)
    turns, listed = turns_of(messages), tools_of(tools)
    mark = mark or free_mark(texts_of([turns, listed, dict(template_kwargs)]))
    harmless = partial(_harmless, tokens=codec.reserved_tokens, mark=mark)
    try:
        text = _rendered(
            codec,
            [_harmless_turn(turn, harmless, codec, mark) for turn in turns],
            mapped(listed, harmless),
            mark,
            add_generation_prompt=add_generation_prompt,
            variables=mapped(dict(template_kwargs), harmless),
        )
    except Exception as error:  # templates raise arbitrary errors
        if (line := getattr(error, "lineno", None)) is not None:  # only Jinja syntax errors have it
            raise PromptError(
                f"the model's chat_template has a syntax error in line {line}: {error}. Hint: fix "
                "TransformersModel(chat_template=...), or set it to replace the tokenizer's own"
            ) from error
        uses_tools = any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns)
        calls = ", or the tool calls and their ids" if uses_tools else ""
        raise PromptError(
            f"the model's chat template rejects these messages ({error}). Hint: change the roles "
            f"or their order{calls}; the roles are: {roles_of(messages)}"
        ) from error
    return Rendered(text, mark)


def _rendered(
    codec: Codec,
    turns: Sequence[TemplateMessage],
    tools: Sequence[dict[str, Any]] | None,
    mark: str,
    *,
    add_generation_prompt: bool,
    variables: dict[str, Any],
) -> str:
    """Render defused messages; tokenizers with own code for it leave only the marks as a trace."""
    tokenizer = codec.tokenizer
    if can_trace(tokenizer):
        return render_traced(
            tokenizer,
            turns,
            tools,
            add_generation_prompt=add_generation_prompt,
            variables=variables,
        )
    text: str = tokenizer.apply_chat_template(
        turns,
        tools=tools,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    ends = [0, *(found.end() for found in re.finditer(f".{mark}", text, re.DOTALL))]
    starts = [end - 2 for end in ends[1:]]
    return with_template_spans(text, zip(ends, [*starts, len(text)], strict=True))


def encode_rendered(codec: Codec, rendered: Rendered) -> list[int]:
    """Encode rendered text; only the template's own reserved tokens are parsed as tokens."""
    runs = runs_of(rendered.text)
    return codec.encode_pieces([(run.replace(rendered.mark, ""), own) for run, own in runs])


def free_mark(contents: Sequence[str]) -> str:
    """Return a noncharacter that occurs in no content.

    Raises:
        PromptError: The contents contain all of them.
    """
    free = (mark for mark in _MARKS if not any(mark in content for content in contents))
    mark = next(free, None)
    if mark is None:
        raise PromptError(
            "the contents contain all 32 noncharacters U+FDD0 to U+FDEF, and one is needed to mark "
            "control tokens. Hint: remove the noncharacters"
        )
    return mark


def knows_tools(codec: Codec, template_kwargs: TemplateKwargs = NO_KWARGS) -> bool:
    """Return whether the chat template describes tools to the model."""
    probe = Tool(name="a_tool_that_nobody_has")
    turn = Message(role="user", content="Hello")
    try:
        text = render(
            codec, [turn], [probe], add_generation_prompt=True, template_kwargs=template_kwargs
        ).text
    except PromptError:
        return False
    return probe.name in text


def _harmless_turn(
    turn: TemplateMessage, harmless: Change, codec: Codec, mark: str
) -> TemplateMessage:
    """Defuse a message; the output of an assistant keeps reserved tokens that have a text."""
    give_way()
    changed: TemplateMessage = {**mapped(turn, harmless), "role": template_text(turn["role"])}
    if turn["role"] == "assistant":
        for key in _WRITTEN:
            if key in turn:
                text = _harmless(turn[key], codec.control_tokens, mark)
                spans = [
                    found.span() for found in _pattern(codec.reserved_tokens, mark).finditer(text)
                ]
                changed[key] = with_template_spans(text, spans)
    return changed


def _harmless(text: str, tokens: tuple[str, ...], mark: str) -> str:
    """Insert the mark into every token, after its first character."""
    if text in _WORDS:
        return text
    pattern = _pattern(tokens, mark)
    while pattern.search(text):  # repeat, because tokens may overlap
        text = pattern.sub(lambda found: found[0][0] + mark + found[0][1:], text)
    return text


@lru_cache(maxsize=64)
def _pattern(tokens: tuple[str, ...], mark: str) -> re.Pattern[str]:
    # A token of one character has no inside, so its mark follows it.
    behind = f"(?!{re.escape(mark)})"
    wholes = [re.escape(token) + behind * (len(token) == 1) for token in tokens]
    return re.compile("|".join(wholes) or "(?!)")


def _warn_of_unread(codec: Codec, template_kwargs: TemplateKwargs) -> None:
    """Warn, once for each name, about variables that the chat template does not read."""
    checked = _checked.setdefault(codec, set())
    new = [name for name in template_kwargs if name not in checked]
    if not new:
        return
    checked.update(new)
    read = _names_read(template_sources(codec.tokenizer))
    for name in new:
        if name not in read:
            warnings.warn(
                f"chat_template_kwargs={{{name!r}: ...}} has no effect; the chat template does not "
                "read this variable. Hint: remove it, or check its spelling",
                StarsWarning,
                stacklevel=3,
            )


def reads_variable(template: str, name: str) -> bool:
    """Return whether a template reads a variable."""
    return name in _names_read((template,))


def _names_read(sources: Sequence[str]) -> set[str]:
    """Return the names in templates that may be variables."""
    found = set()
    for source in sources:
        words = [("", ""), *template_words(source)]
        for (_, before), (kind, word) in pairwise(words):
            if kind == "name" and before != ".":
                found.add(word)
    return found

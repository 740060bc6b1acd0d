"""Conversations through a tokenizer's own chat template, with contents that stay contents.

A template turns messages into text whose reserved tokens mark roles, calls and thoughts. One that a
user typed, or that a document holds, must not: it is *defused*, a mark is put inside it before
rendering, and taken out again once the template's own tokens have been parsed.

What an assistant said is what a model wrote: of the reserved tokens in it only the control tokens
are defused, for a model writes `<think>` as that token, and templates look for it.
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

from stars_engine.chat.turns import Turn, mapped, texts_of, tools_of, turns_of
from stars_engine.errors import PromptError, StarsWarning
from stars_engine.messages import Message, Tool
from stars_engine.tokenization.added_tokens import template_words
from stars_engine.tokenization.codec import Codec

# Values that templates compare with, and no control tokens.
_WORDS = frozenset({"system", "user", "assistant", "tool", "function"})

_WRITTEN = ("content", "reasoning_content")  # by a model, in an assistant's turn
Change = Callable[[str], str]
TemplateKwargs = Mapping[str, Any]
NO_KWARGS: TemplateKwargs = MappingProxyType({})
_told: WeakKeyDictionary[Codec, set[str]] = WeakKeyDictionary()

# Noncharacters of Unicode: never part of text that is meant to be exchanged.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class Rendered(NamedTuple):
    """Text from a template.

    Attributes:
        text: With the mark inside reserved tokens that are contents'.
        mark: A character that no content holds.
    """

    text: str
    mark: str


def has_template(codec: Codec) -> bool:
    """Return whether the tokenizer brings a chat template."""
    return bool(getattr(codec.tokenizer, "chat_template", None))


def encode_chat(
    codec: Codec,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    template_kwargs: TemplateKwargs = NO_KWARGS,
) -> list[int]:
    """Render messages, ready for the assistant to answer, and encode them.

    Equal to `apply_chat_template` unless a content holds a control token.

    Raises:
        PromptError: There is no template, it rejects the messages, or they hold every noncharacter.
    """
    if not has_template(codec):
        raise PromptError(
            "a conversation needs a chat template and this model's tokenizer has none. Hint: pass "
            "a string, set prompt_format='raw', or give TransformersModel(chat_template=...)"
        )
    rendered = render(
        codec, messages, tools, add_generation_prompt=True, template_kwargs=template_kwargs
    )
    return encode_rendered(codec, rendered)


def render(
    codec: Codec,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    add_generation_prompt: bool,
    mark: str | None = None,
    template_kwargs: TemplateKwargs = NO_KWARGS,
) -> Rendered:
    """Render messages, with reserved tokens in their contents defused.

    Args:
        codec: The tokenizer with the template.
        messages: The conversation.
        tools: What the template is to tell of tools.
        add_generation_prompt: Whether an assistant's turn begins at the end.
        mark: What to put inside reserved tokens; the default is one that no content holds.
        template_kwargs: Further variables of the template.

    Raises:
        PromptError: The template rejects the messages, or they hold every noncharacter.
    """
    _warn_of_unread(codec, template_kwargs)
    turns, listed = turns_of(messages), tools_of(tools)
    mark = mark or free_mark(texts_of([turns, listed, dict(template_kwargs)]))
    harmless = partial(_harmless, tokens=codec.reserved_tokens, mark=mark)
    written = partial(_harmless, tokens=codec.control_tokens, mark=mark)
    try:
        text: str = codec.tokenizer.apply_chat_template(
            [_harmless_turn(turn, harmless, written) for turn in turns],
            tools=mapped(listed, harmless),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **mapped(dict(template_kwargs), harmless),
        )
    except Exception as error:  # templates raise whatever they like
        if (line := getattr(error, "lineno", None)) is not None:  # of Jinja's syntax errors alone
            raise PromptError(
                f"the model's chat_template has a syntax error in line {line}: {error}. Hint: mend "
                "TransformersModel(chat_template=...), or give one if it is the tokenizer's own"
            ) from error
        roles = ", ".join(message.role for message in messages)
        calls = ", or the calls of tools and their ids" if "tool" in f"{turns}" else ""
        raise PromptError(
            f"the model's chat template rejects these messages ({error}). Hint: change the roles "
            f"or their order{calls}; they are: {roles}"
        ) from error
    return Rendered(text, mark)


def encode_rendered(codec: Codec, rendered: Rendered) -> list[int]:
    """Encode what was rendered: the template's reserved tokens are parsed, contents' are text."""
    return codec.encode_marked(rendered.text, rendered.mark)


def free_mark(contents: Sequence[str]) -> str:
    """Return a noncharacter that no content holds.

    Raises:
        PromptError: They hold them all.
    """
    free = (mark for mark in _MARKS if not any(mark in content for content in contents))
    mark = next(free, None)
    if mark is None:
        raise PromptError(
            "the contents hold all 32 noncharacters U+FDD0 to U+FDEF, and one is needed to mark "
            "control tokens. Hint: take them out, they are no characters"
        )
    return mark


def knows_tools(codec: Codec, template_kwargs: TemplateKwargs = NO_KWARGS) -> bool:
    """Return whether the chat template tells the model of tools."""
    probe = Tool(name="a_tool_that_nobody_has")
    turn = Message(role="user", content="Hello")
    try:
        text = render(
            codec, [turn], [probe], add_generation_prompt=True, template_kwargs=template_kwargs
        ).text
    except PromptError:
        return False
    return probe.name in text


def _harmless_turn(turn: Turn, harmless: Change, written: Change) -> Turn:
    """Defuse a turn; of an assistant's, what it wrote as text keeps the tokens that have a text."""
    changed: Turn = mapped(turn, harmless)
    if turn["role"] == "assistant":
        changed |= {key: written(turn[key]) for key in _WRITTEN if key in turn}
    return changed


def _harmless(text: str, tokens: tuple[str, ...], mark: str) -> str:
    return text if text in _WORDS else defuse(text, tokens, mark)


def defuse(content: str, tokens: tuple[str, ...], mark: str) -> str:
    """Put the mark inside every such token, and where one could be completed by a neighbour."""
    shapes = _shapes_of(tokens, mark)
    while shapes.whole.search(content):  # again, for they may overlap
        content = shapes.whole.sub(lambda found: found[0][0] + mark + found[0][1:], content)
    sizes = range(1, min(len(content) + 1, shapes.longest))
    if any(content[-size:] in shapes.heads for size in sizes):
        content += mark
    if any(content[:size] in shapes.tails for size in sizes):
        content = mark + content
    return content


class _Shapes(NamedTuple):
    """What tokens look like: whole ones without a mark, their beginnings and their ends."""

    whole: re.Pattern[str]
    heads: frozenset[str]
    tails: frozenset[str]
    longest: int


@lru_cache(maxsize=64)
def _shapes_of(tokens: tuple[str, ...], mark: str) -> _Shapes:
    # A single character has no inside: its mark stands behind it.
    behind = f"(?!{re.escape(mark)})"
    wholes = [re.escape(token) + behind * (len(token) == 1) for token in tokens]
    places = [(token, size) for token in tokens for size in range(1, len(token))]
    return _Shapes(
        re.compile("|".join(wholes) or "(?!)"),
        frozenset(token[:size] for token, size in places),
        frozenset(token[size:] for token, size in places),
        max(map(len, tokens), default=0),
    )


def _warn_of_unread(codec: Codec, template_kwargs: TemplateKwargs) -> None:
    """Tell, once for each name, of variables that the chat template does not read."""
    told = _told.setdefault(codec, set())
    new = [name for name in template_kwargs if name not in told]
    if not new:
        return
    told.update(new)
    read = _names_read(sources_of(codec))
    for name in new:
        if name not in read:
            warnings.warn(
                f"chat_template_kwargs={{{name!r}: ...}} changes nothing: the chat template reads "
                "no variable of this name. Hint: leave it out, or check its spelling",
                StarsWarning,
                stacklevel=3,
            )


def sources_of(codec: Codec) -> tuple[str, ...]:
    """Return the source of the tokenizer's chat templates: none, one, or several for tasks."""
    template = codec.tokenizer.chat_template or ""
    return tuple(template.values()) if isinstance(template, dict) else (template,)


def _names_read(sources: tuple[str, ...]) -> set[str]:
    """Return the names in templates that may be variables."""
    found = set()
    for source in sources:
        words = [("", ""), *template_words(source)]
        for (_, before), (kind, word) in pairwise(words):
            if kind == "name" and before != ".":
                found.add(word)
    return found

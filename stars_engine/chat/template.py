"""Render conversations with a tokenizer's chat template, without letting contents inject tokens.

A template turns messages into text whose reserved tokens mark roles, calls and reasoning. Reserved
tokens in the contents, typed by a user or quoted in a document, must stay text. They are *defused*:
a mark is inserted into them before rendering, and removed after the template's own tokens have been
parsed.

Assistant messages are model output, so only control tokens are defused in them: models write
`<think>` as a token, and templates look for it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from stars_engine.chat.turns import TemplateMessage, mapped, texts_of, tools_of, turns_of
from stars_engine.errors import PromptError, StarsWarning
from stars_engine.messages import Message, Tool
from stars_engine.tokenization.added_tokens import template_words
from stars_engine.tokenization.codec import Codec

# Values that templates compare with; they are never control tokens.
_WORDS = frozenset({"system", "user", "assistant", "tool", "function"})

# Keys that templates read of messages, calls and tools.
_NAMES = frozenset(
    {
        *("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name", "type"),
        *("id", "function", "arguments", "description", "parameters", "properties", "required"),
        *("items", "enum", "default"),
    }
)
_CORE = re.compile(r"[</|\[\s\uff5c]+(\w+(?:.*\w)?)[>/|\]\s\uff5c]+", re.DOTALL)

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
        text: The text, with the mark inside the reserved tokens of contents.
        mark: A character that occurs in no content.
    """

    text: str
    mark: str


def has_template(codec: Codec) -> bool:
    """Return whether the tokenizer has a chat template."""
    return bool(getattr(codec.tokenizer, "chat_template", None))


def encode_chat(
    codec: Codec,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    template_kwargs: TemplateKwargs = NO_KWARGS,
) -> list[int]:
    """Render messages with a generation prompt, and encode them.

    Equal to `apply_chat_template` unless a content contains a control token.

    Raises:
        PromptError: There is no template, it rejects the messages, or the messages contain every
            noncharacter.
    """
    if not has_template(codec):
        raise PromptError(
            "a conversation needs a chat template, and this model's tokenizer has none. Hint: pass "
            "a string, set prompt_format='raw', or set TransformersModel(chat_template=...)"
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
    written = partial(_harmless, tokens=codec.control_tokens, mark=mark)
    name = partial(_harmless_name, tokens=codec.reserved_tokens, mark=mark)
    try:
        text: str = codec.tokenizer.apply_chat_template(
            [_harmless_turn(turn, harmless, written, name) for turn in turns],
            tools=mapped(listed, harmless, name),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **{key: mapped(value, harmless, name) for key, value in template_kwargs.items()},
        )
    except Exception as error:  # templates raise arbitrary errors
        if (line := getattr(error, "lineno", None)) is not None:  # only Jinja syntax errors have it
            raise PromptError(
                f"the model's chat_template has a syntax error in line {line}: {error}. Hint: fix "
                "TransformersModel(chat_template=...), or set it to replace the tokenizer's own"
            ) from error
        roles = ", ".join(message.role for message in messages)
        calls = ", or the tool calls and their ids" if "tool" in f"{turns}" else ""
        raise PromptError(
            f"the model's chat template rejects these messages ({error}). Hint: change the roles "
            f"or their order{calls}; the roles are: {roles}"
        ) from error
    return Rendered(text, mark)


def encode_rendered(codec: Codec, rendered: Rendered) -> list[int]:
    """Encode rendered text; only the template's own reserved tokens are parsed as tokens."""
    return codec.encode_marked(rendered.text, rendered.mark)


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
    turn: TemplateMessage, harmless: Change, written: Change, name: Change
) -> TemplateMessage:
    """Defuse a message; the output of an assistant keeps reserved tokens that have a text."""
    changed: TemplateMessage = mapped(turn, harmless, name)
    if turn["role"] == "assistant":
        changed |= {key: written(turn[key]) for key in _WRITTEN if key in turn}
    return changed


def _harmless(text: str, tokens: tuple[str, ...], mark: str) -> str:
    return text if text in _WORDS else defuse(text, tokens, mark)


def _harmless_name(name: str, tokens: tuple[str, ...], mark: str) -> str:
    """Defuse whole tokens, and names that only lack the brackets, which some templates write.

    Templates read other names, such as `content` and `type`.
    """
    shapes = _shapes_of(tokens, mark)
    is_core = name in shapes.cores and name not in _NAMES
    return name[0] + mark + name[1:] if is_core else _split(name, shapes, mark)


def _split(content: str, shapes: _Shapes, mark: str) -> str:
    while shapes.whole.search(content):  # repeat, because tokens may overlap
        content = shapes.whole.sub(lambda found: found[0][0] + mark + found[0][1:], content)
    return content


def defuse(content: str, tokens: tuple[str, ...], mark: str) -> str:
    """Insert the mark into every token, and at the ends if a neighbor could complete a token."""
    shapes = _shapes_of(tokens, mark)
    content = _split(content, shapes, mark)
    body = content.strip()  # as templates often strip it
    if not body:
        return content
    before, _, after = content.partition(body)
    if body in shapes.cores:
        return f"{before}{mark}{body}{mark}{after}"
    sizes = range(1, min(len(body) + 1, shapes.longest))
    if any(body[-size:] in shapes.heads for size in sizes):
        body += mark
    if any(body[:size] in shapes.tails for size in sizes):
        body = mark + body
    return before + body + after


class _Shapes(NamedTuple):
    """Patterns of tokens: whole ones without a mark, and their prefixes, suffixes and insides."""

    whole: re.Pattern[str]
    heads: frozenset[str]
    tails: frozenset[str]
    cores: frozenset[str]
    longest: int


@lru_cache(maxsize=64)
def _shapes_of(tokens: tuple[str, ...], mark: str) -> _Shapes:
    # A token of one character has no inside, so its mark follows it.
    behind = f"(?!{re.escape(mark)})"
    wholes = [re.escape(token) + behind * (len(token) == 1) for token in tokens]
    splits = [(token, size) for token in tokens for size in range(1, len(token))]
    return _Shapes(
        re.compile("|".join(wholes) or "(?!)"),
        frozenset(token[:size] for token, size in splits),
        frozenset(token[size:] for token, size in splits),
        frozenset(core for token in tokens for core in _cores(token)),
        max(map(len, tokens), default=0),
    )


def _cores(token: str) -> Iterator[str]:
    """Yield what is left of a token without some of its brackets at both ends."""
    found = _CORE.fullmatch(token)
    if found is None:
        return
    first, last = found.span(1)
    for start in range(1, first + 1):
        for end in range(last, len(token)):
            yield token[start:end]


def _warn_of_unread(codec: Codec, template_kwargs: TemplateKwargs) -> None:
    """Warn, once for each name, about variables that the chat template does not read."""
    checked = _checked.setdefault(codec, set())
    new = [name for name in template_kwargs if name not in checked]
    if not new:
        return
    checked.update(new)
    read = _names_read(sources_of(codec))
    for name in new:
        if name not in read:
            warnings.warn(
                f"chat_template_kwargs={{{name!r}: ...}} has no effect; the chat template does not "
                "read this variable. Hint: remove it, or check its spelling",
                StarsWarning,
                stacklevel=3,
            )


def sources_of(codec: Codec) -> tuple[str, ...]:
    """Return the sources of the tokenizer's chat templates; there may be one per task."""
    template = codec.tokenizer.chat_template or ""
    return tuple(template.values()) if isinstance(template, dict) else (template,)


def reads_variable(template: str, name: str) -> bool:
    """Return whether a template reads a variable."""
    return name in _names_read((template,))


def _names_read(sources: tuple[str, ...]) -> set[str]:
    """Return the names in templates that may be variables."""
    found = set()
    for source in sources:
        words = [("", ""), *template_words(source)]
        for (_, before), (kind, word) in pairwise(words):
            if kind == "name" and before != ".":
                found.add(word)
    return found

"""The formats in which models write tool calls, detected from the chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stars_engine.tokenization.codec import Codec

BLANKS = " \t\r\n"  # the whitespace of JSON
_PREFIX = "\ufdd0"  # precedes a marker that is a control token; never occurs in text


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A format for tool calls.

    Attributes:
        name: The name of the format.
        marker: Text that begins a call anywhere in the answer; empty if a call is the whole answer
            and is recognized by its first characters.
        begin: Text before the first call; starts with the marker.
        between: Text between two calls; None if the format allows one call per answer.
        end: Text after the last call.
        key: The JSON key of the arguments, next to `name`.
        infix: Text between name and arguments, in a format without a key.
        first: The first characters of a call without a marker.
        tag: Optional text before `first`.
        close: Text after each call.
    """

    name: str
    marker: str
    begin: str
    between: str | None
    end: str
    key: str = "arguments"
    infix: str = ""
    first: str = ""
    tag: str = ""
    close: str = ""

    def head_of(self, name: str, reserved: Sequence[str] = ()) -> str:
        """Return the text before the arguments of a call; see `write`."""
        if self.infix:
            return f"{_escaped(name, reserved)}{self.infix}"
        return f'{{"name": {_escaped(json.dumps(name), reserved)}, "{self.key}": '

    @property
    def tail(self) -> str:
        """The text after the arguments of a call."""
        return "" if self.infix else "}"

    def write(
        self, calls: Sequence[tuple[str, dict[str, Any]]], reserved: Sequence[str] = ()
    ) -> str:
        """Return an answer that consists of tool calls.

        Args:
            calls: Names and arguments.
            reserved: Tokens that must not occur in names and arguments; their first characters are
                escaped, which does not change the JSON value.
        """
        between = self.between or ""
        written = (
            self.head_of(name, reserved)
            + _escaped(json.dumps(arguments, ensure_ascii=False), reserved)
            + self.tail
            for name, arguments in calls
        )
        return self.begin + between.join(written) + self.end


def _escaped(written: str, reserved: Sequence[str]) -> str:
    """Return JSON in which the first character of each reserved token is escaped."""
    for token in reserved:
        if len(token) > 1 and ord(token[0]) < 0x10000:
            written = written.replace(token, f"\\u{ord(token[0]):04x}{token[1:]}")
    return written


HERMES = ToolFormat(
    name="hermes",
    marker="<tool_call>",
    begin="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    end="\n</tool_call>",
    close="</tool_call>",
)
MISTRAL = ToolFormat(
    name="mistral", marker="[TOOL_CALLS]", begin="[TOOL_CALLS][", between=", ", end="]"
)
MISTRAL_NAMED = ToolFormat(
    name="mistral, named",
    marker="[TOOL_CALLS]",
    begin="[TOOL_CALLS]",
    between="[TOOL_CALLS]",
    end="",
    infix="[ARGS]",
)
LLAMA = ToolFormat(
    name="llama",
    marker="",
    begin="",
    between=None,
    end="",
    key="parameters",
    first='{"name"',
    tag="<|python_tag|>",
)
GENERIC = ToolFormat(
    name="generic",
    marker="",
    begin='{"tool_calls": [',
    between=", ",
    end="]}",
    first='{"tool_calls"',
)
OPENING, CLOSING = "<think>", "</think>"
_MARKERS = (HERMES.marker, HERMES.close, MISTRAL.marker, MISTRAL_NAMED.infix, LLAMA.tag)


def format_of(template: str | None) -> ToolFormat:
    """Return the format in which a chat template writes calls; the generic one if unknown."""
    text = template or ""
    if MISTRAL.marker in text:
        return MISTRAL_NAMED if MISTRAL_NAMED.infix in text else MISTRAL
    if HERMES.marker in text and "<function=" not in text:  # calls in XML
        return HERMES
    if LLAMA.tag in text or ('"parameters": ' in text and "ipython" in text):
        return LLAMA
    return GENERIC


# --- markers that are control tokens, which text does not contain ---


def as_seen(marker: str, codec: Codec) -> str:
    """Return the form of a marker in `marked_text`; plain text cannot contain a control token."""
    return _PREFIX + marker if marker in codec.control_tokens else marker


def format_as_seen(form: ToolFormat, codec: Codec) -> ToolFormat:
    """Return a format with its markers in the form of `marked_text`."""
    names = ("marker", "infix", "tag", "close")
    parts = {name: getattr(form, name) for name in names}
    return replace(form, **{n: as_seen(part, codec) for n, part in parts.items() if part})


def marked_text(codec: Codec, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> str:
    """Insert the markers that are control tokens into the text of an answer.

    Args:
        codec: The model's tokenizer.
        prompt_ids: The prompt.
        ids: The answer.
        text: The text of the answer, which may end before a stop string.
    """
    markers = {
        codec.tokenizer.convert_tokens_to_ids(marker): _PREFIX + marker
        for marker in (*_MARKERS, OPENING, CLOSING)
        if marker in codec.control_tokens
    }
    found = [(index, markers[token]) for index, token in enumerate(ids) if token in markers]
    for index, marker in reversed(found):
        at = len(codec.completion_text(prompt_ids, ids[:index])[0])
        if at <= len(text):
            text = text[:at] + marker + text[at:]
    return text


def is_control(marker: str) -> bool:
    """Whether a marker, in the form of `marked_text`, is a control token."""
    return marker.startswith(_PREFIX)


def unmarked(text: str) -> str:
    """Return marked text for display, with the names of the markers."""
    return text.replace(_PREFIX, "")

"""How models write calls of tools, as the chat template tells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stars_engine.tokenization.codec import Codec

BLANKS = " \t\r\n"  # those of JSON
_PLACE = "\ufdd0"  # stands before a marker that is a control token, and never in text


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way to write calls.

    Attributes:
        name: What it is known by.
        marker: What only calls begin with, wherever in the answer; empty where a call is the whole
            answer and known by its first characters.
        begin: What stands before the first call, the marker at its start.
        between: What stands between two calls; None for a format with one call to an answer.
        end: What stands after the last.
        key: What the arguments are called, beside `name`.
        infix: What stands between name and arguments, in a format without a key.
        first: The first characters of calls that have no marker.
        tag: What may stand before those.
        close: What stands behind each call.
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
        """Return what stands before the arguments of a call; see `write`."""
        if self.infix:
            return f"{_escaped(name, reserved)}{self.infix}"
        return f'{{"name": {_escaped(json.dumps(name), reserved)}, "{self.key}": '

    @property
    def tail(self) -> str:
        """What stands behind the arguments of a call."""
        return "" if self.infix else "}"

    def write(
        self, calls: Sequence[tuple[str, dict[str, Any]]], reserved: Sequence[str] = ()
    ) -> str:
        """Return an answer that calls tools, each with its arguments.

        Args:
            calls: Names and arguments.
            reserved: Tokens that names and arguments may not hold: their first characters are
                escaped, which leaves the JSON the same.
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
    """Return JSON with an escape in place of the first character of each reserved token."""
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
    """Return the format that a chat template writes calls in; the generic one if in none here."""
    text = template or ""
    if MISTRAL.marker in text:
        return MISTRAL_NAMED if MISTRAL_NAMED.infix in text else MISTRAL
    if HERMES.marker in text and "<function=" not in text:  # calls in XML
        return HERMES
    if LLAMA.tag in text or ('"parameters": ' in text and "ipython" in text):
        return LLAMA
    return GENERIC


# --- markers that are control tokens, which have no text ---


def as_seen(marker: str, codec: Codec) -> str:
    """Return what `marked_text` has for a marker: nothing that a text could hold by itself."""
    return _PLACE + marker if marker in codec.control_tokens else marker


def format_as_seen(form: ToolFormat, codec: Codec) -> ToolFormat:
    """Return a format with its markers as `marked_text` has them."""
    names = ("marker", "infix", "tag", "close")
    parts = {name: getattr(form, name) for name in names}
    return replace(form, **{n: as_seen(part, codec) for n, part in parts.items() if part})


def marked_text(codec: Codec, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> str:
    """Return an answer's text with the markers in it that are control tokens.

    Args:
        codec: The model's tokenizer.
        prompt_ids: The prompt.
        ids: The answer.
        text: Its text, which may end before a stop string.
    """
    markers = {
        codec.tokenizer.convert_tokens_to_ids(marker): _PLACE + marker
        for marker in (*_MARKERS, OPENING, CLOSING)
        if marker in codec.control_tokens
    }
    places = [(place, markers[token]) for place, token in enumerate(ids) if token in markers]
    for place, marker in reversed(places):
        at = len(codec.completion_text(prompt_ids, ids[:place])[0])
        if at <= len(text):
            text = text[:at] + marker + text[at:]
    return text


def is_control(marker: str) -> bool:
    """Whether a marker as seen is a control token, which no text is taken for."""
    return marker.startswith(_PLACE)


def unmarked(text: str) -> str:
    """Return a piece of marked text as it is shown: a marker is its name."""
    return text.replace(_PLACE, "")

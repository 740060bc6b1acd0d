"""How models write calls of tools: told by the chat template, read back from an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from stars_engine.codec import Codec
from stars_engine.messages import InvalidToolCall, Tool, ToolCall

_DECODER = json.JSONDecoder()


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
        key: What the arguments are called, beside `name`; empty where the name stands before them.
        first: The first characters of calls that have no marker.
    """

    name: str
    marker: str
    begin: str
    between: str | None
    end: str
    key: str = "arguments"
    first: str = ""

    def head_of(self, name: str) -> str:
        """Return what stands before the arguments of a call."""
        if not self.key:
            return f"{name}[ARGS]"
        return f'{{"name": {json.dumps(name)}, "{self.key}": '

    @property
    def tail(self) -> str:
        """What stands behind the arguments of a call."""
        return "}" if self.key else ""

    def write(self, calls: list[tuple[str, dict[str, Any]]]) -> str:
        """Return an answer that calls tools, each with its arguments."""
        between = self.between or ""
        written = (
            self.head_of(name) + json.dumps(arguments, ensure_ascii=False) + self.tail
            for name, arguments in calls
        )
        return self.begin + between.join(written) + self.end


HERMES = ToolFormat(
    name="hermes",
    marker="<tool_call>",
    begin="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    end="\n</tool_call>",
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
    key="",
)
LLAMA = ToolFormat(
    name="llama",
    marker="",
    begin="",
    between=None,
    end="",
    key="parameters",
    first='{"name"',
)
GENERIC = ToolFormat(
    name="generic",
    marker="",
    begin='{"tool_calls": [',
    between=", ",
    end="]}",
    first='{"tool_calls"',
)
PYTHON_TAG = "<|python_tag|>"  # Llama 3 may write it before a call
MARKERS = (
    HERMES.marker,
    "</tool_call>",
    MISTRAL.marker,
    "[ARGS]",
    PYTHON_TAG,
    "<think>",
    "</think>",
)


def format_of(template: str | None) -> ToolFormat:
    """Return the format that a chat template writes calls in; the generic one if in none here."""
    text = template or ""
    if MISTRAL.marker in text:
        return MISTRAL_NAMED if "[ARGS]" in text else MISTRAL
    if HERMES.marker in text and "<function=" not in text:  # calls in XML
        return HERMES
    if PYTHON_TAG in text or ('"parameters": ' in text and "ipython" in text):
        return LLAMA
    return GENERIC


@dataclass(frozen=True, slots=True)
class Calls:
    """What an answer holds.

    Attributes:
        content: What it says beside its calls.
        valid: Calls of tools that there are, with arguments that are an object.
        invalid: All else that was written as a call: nothing of it is lost.
    """

    content: str
    valid: tuple[ToolCall, ...] = ()
    invalid: tuple[InvalidToolCall, ...] = ()


def read_calls(text: str, form: ToolFormat, tools: tuple[Tool, ...]) -> Calls:
    """Read an answer's calls.

    Args:
        text: The answer, with the format's markers in it.
        form: How they are written.
        tools: What may be called.
    """
    if form is LLAMA:
        text = text.replace(PYTHON_TAG, "", 1) if text.lstrip().startswith(PYTHON_TAG) else text
    if form.marker:
        content, found, rest = text.partition(form.marker)
        if not found:
            return Calls(text)
        pieces = _after_marker(rest, form)
        content = content.rstrip()
    else:
        if not _begins(text, form):
            return Calls(text)
        content, pieces = "", _whole(text, form)
    valid: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for piece in pieces:
        call = _read(piece, form, {tool.name for tool in tools})
        if isinstance(call, InvalidToolCall):
            invalid.append(call)
        else:
            valid.append(call.replace(id=_id_of(len(valid), text)))
    return Calls(content, tuple(valid), tuple(invalid))


def start_of_calls(text: str, form: ToolFormat) -> int:
    """Return where in an answer its calls begin; its length if there are none."""
    if form.marker:
        found = text.find(form.marker)
        return len(text) if found < 0 else found
    begun = form is LLAMA and text.lstrip().startswith(PYTHON_TAG)
    return 0 if begun or _begins(text, form) else len(text)


def _begins(text: str, form: ToolFormat) -> bool:
    return re.sub(r"\s+", "", text[:200]).startswith(re.sub(r"\s+", "", form.first))


def _after_marker(rest: str, form: ToolFormat) -> list[str]:
    """Return the calls behind the first marker, as written."""
    pieces = rest.split(form.marker)
    if form is HERMES:
        return [piece.replace("</tool_call>", "").strip() for piece in pieces]
    if form is MISTRAL:
        return [found for piece in pieces for found in _items(piece)]
    return [piece.strip() for piece in pieces]


def _whole(text: str, form: ToolFormat) -> list[str]:
    if form is LLAMA:
        return [text.strip()]
    inside = text[text.index("[") :] if "[" in text else text
    return _items(inside)


def _items(text: str) -> list[str]:
    """Cut a JSON list into its items as written; what cannot be read is one piece to its end."""
    start = _after_blank(text, 0)
    if text[start : start + 1] != "[":
        return [text.strip()]
    items: list[str] = []
    start += 1
    while True:
        start = _after_blank(text, start)
        if text[start : start + 1] in ("]", ""):
            rest = text[start + 1 :].strip(" \n}")
            return [*items, rest] if rest else items
        try:
            _, end = _DECODER.raw_decode(text, start)
        except ValueError:
            return [*items, text[start:]]
        items.append(text[start:end])
        start = _after_blank(text, end)
        start += text[start : start + 1] == ","


def _after_blank(text: str, start: int) -> int:
    return len(text) - len(text[start:].lstrip())


def _read(piece: str, form: ToolFormat, names: set[str]) -> ToolCall | InvalidToolCall:
    name: Any = None
    arguments: Any = {}
    try:
        if form.key:
            value = json.loads(piece)
            if isinstance(value, dict):
                name = value.get("name")
                # Models trained on one format may write another's key.
                arguments = value.get("arguments", value.get("parameters", {}))
        else:
            name, _, written = piece.partition("[ARGS]")
            arguments = json.loads(written)
    except ValueError as error:
        return InvalidToolCall(text=piece, name=name, error=f"it is no JSON: {error}")
    if not isinstance(name, str) or name not in names:
        known = ", ".join(sorted(names)) or "none"
        return InvalidToolCall(
            text=piece,
            name=name if isinstance(name, str) else None,
            error=f"there is no tool {name!r}; there are: {known}",
        )
    if not isinstance(arguments, dict):
        return InvalidToolCall(
            text=piece, name=name, error=f"its arguments are no object: {arguments!r}"
        )
    return ToolCall(name=name, arguments=arguments)


def _id_of(index: int, text: str) -> str:
    """Return nine letters and digits, as Mistral's templates ask for; equal answers, equal ids."""
    return sha256(f"{index}:{text}".encode()).hexdigest()[:9]


def marked_text(codec: Codec, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> str:
    """Return an answer's text with the markers in it that are control tokens, which have no text.

    Args:
        codec: The model's tokenizer.
        prompt_ids: The prompt.
        ids: The answer.
        text: Its text, which may end before a stop string.
    """
    markers = {
        codec.tokenizer.convert_tokens_to_ids(marker): marker
        for marker in MARKERS
        if marker in codec.control_tokens
    }
    places = [(place, markers[token]) for place, token in enumerate(ids) if token in markers]
    for place, marker in reversed(places):
        at = len(codec.completion_text(prompt_ids, ids[:place])[0])
        if at <= len(text):
            text = text[:at] + marker + text[at:]
    return text

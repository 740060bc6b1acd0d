"""Calls of tools, read from an answer: what is none is kept as it was written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from stars_engine.chat.formats import (
    BLANKS,
    GENERIC,
    LLAMA,
    MISTRAL,
    ToolFormat,
    is_control,
    unmarked,
)
from stars_engine.messages import InvalidToolCall, Tool, ToolCall

_MAX_DEPTH = 100


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


def start_of_calls(text: str, form: ToolFormat) -> int:
    """Return where in a marked text its calls begin; its length if there are none."""
    if form.marker:
        found = text.find(form.marker)
        return len(text) if found < 0 else found
    scanner = _Scanner(text)
    scanner.skip()
    if form.tag and scanner.take(form.tag):
        if is_control(form.tag):
            return 0
        scanner.skip()
    if not scanner.take("{"):
        return len(text)
    scanner.skip()
    return 0 if scanner.take(form.first[1:]) else len(text)


def may_be_a_call(text: str, form: ToolFormat) -> bool:
    """Whether all of a marked text could be the beginning of a call's marker, or first words."""
    begun = _without_blanks(text)
    signs = (form.marker, form.tag, form.first, form.tag + form.first)
    return bool(begun) and any(sign.startswith(begun) for sign in signs)


def read_calls(text: str, form: ToolFormat, tools: Sequence[Tool], *, salt: str = "") -> Calls:
    """Read an answer's calls.

    Args:
        text: The answer, marked.
        form: How they are written, as seen.
        tools: What may be called.
        salt: What tells this answer's calls from those of equal answers.
    """
    start = start_of_calls(text, form)
    if start == len(text):
        return Calls(unmarked(text))
    scanner = _Scanner(text[start:])
    said, pieces = _cut(scanner, form)
    pieces = [piece for piece in pieces if piece]
    if not pieces:  # the marks of a call, and none between them
        pieces, said = [scanner.text], ""
    names = {tool.name for tool in tools}
    valid: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for piece in pieces:
        call = _read(piece, form, names)
        if isinstance(call, InvalidToolCall):
            invalid.append(call)
        else:
            number = f"{len(valid)}:{salt}:{text}"
            # Nine letters and digits, as Mistral's templates ask for; equal answers, equal ids.
            valid.append(call.replace(id=sha256(number.encode()).hexdigest()[:9]))
    content = "\n".join(filter(None, (text[:start].rstrip(), said)))
    return Calls(unmarked(content), tuple(valid), tuple(invalid))


def _cut(scanner: _Scanner, form: ToolFormat) -> tuple[str, list[str]]:
    """Return what is said behind calls, and the calls as written."""
    if form.name == GENERIC.name:
        return _cut_generic(scanner)
    if form.name == LLAMA.name:
        scanner.skip()
        scanner.take(form.tag)
        scanner.skip()
        pieces = [scanner.json() or scanner.rest()]
        scanner.skip()
        while scanner.take(";") or scanner.peek == "{":  # calls that the format has no way for
            scanner.skip()
            pieces.append(scanner.json() or scanner.rest())
            scanner.skip()
        return scanner.rest().strip(), pieces
    said: list[str] = []
    pieces = []
    while not scanner.at_end:
        if not scanner.take(form.marker):
            said.append(scanner.until(form.marker).strip())
            continue
        scanner.skip()
        if form.name == MISTRAL.name:
            pieces += _items(scanner, form.marker)
        else:
            pieces += _single(scanner, form)
    return "\n".join(filter(None, said)), pieces


def _cut_generic(scanner: _Scanner) -> tuple[str, list[str]]:
    scanner.skip()
    for sign in ("{", '"tool_calls"', ":"):
        scanner.take(sign)
        scanner.skip()
    if scanner.peek != "[":
        return "", []
    items = _items(scanner, "")
    scanner.skip()
    scanner.take("}")
    return scanner.rest().strip(), items


def _items(scanner: _Scanner, marker: str) -> list[str]:
    """Return the items of a JSON list as written; what cannot be read is one piece to its end."""
    if not scanner.take("["):
        return [scanner.json() or scanner.until(marker)]
    items: list[str] = []
    while True:
        scanner.skip()
        if scanner.at_end or scanner.take("]"):
            return items
        piece = scanner.json()
        if piece is None:
            return [*items, scanner.until(marker)]
        items.append(piece)
        scanner.skip()
        scanner.take(",")


def _single(scanner: _Scanner, form: ToolFormat) -> list[str]:
    """Return the call behind a marker as written, and what else stands before its end."""
    start = scanner.place
    if form.infix:
        found = scanner.text.find(form.infix, start)
        ahead = scanner.text.find(form.marker, start)
        if found < 0 or 0 <= ahead < found:
            return [scanner.until(form.marker)]
        scanner.place = found + len(form.infix)
        scanner.skip()
    if scanner.json() is None:
        piece = scanner.text[start : scanner.place] + scanner.until(form.marker)
        return [piece.strip().removesuffix(form.close).strip()]
    pieces = [scanner.text[start : scanner.place]]
    scanner.skip()
    if form.close and not scanner.take(form.close):
        left = scanner.text[scanner.place :]
        end, ahead = left.find(form.close), left.find(form.marker)
        if form.close.startswith(left):  # cut off
            scanner.rest()
        elif end >= 0 and not 0 <= ahead < end:
            pieces.append(scanner.until(form.close).strip())
            scanner.take(form.close)
    scanner.skip()
    return pieces


def _read(piece: str, form: ToolFormat, names: set[str]) -> ToolCall | InvalidToolCall:
    name: Any = None
    arguments: Any = {}
    try:
        if form.infix:
            name, _, written = piece.partition(form.infix)
            arguments = _loads(unmarked(written)) if written.strip(BLANKS) else {}
        else:
            value = _loads(unmarked(piece))
            if isinstance(value, dict):
                name = value.get("name")
                # Models trained on one format may write another's key.
                arguments = value.get("arguments", value.get("parameters", {}))
    except (ValueError, RecursionError) as error:
        return _invalid(piece, name, f"it is no JSON: {error}")
    if not isinstance(name, str) or name not in names:
        known = ", ".join(sorted(names)) or "none"
        return _invalid(piece, name, f"there is no tool {name!r}; there are: {known}")
    if arguments is None:  # as models write that there are none
        arguments = {}
    if not isinstance(arguments, dict):
        return _invalid(piece, name, f"its arguments are no object: {arguments!r}")
    return ToolCall(name=name, arguments=arguments)


def _invalid(piece: str, name: Any, error: str) -> InvalidToolCall:
    told = name if isinstance(name, str) and name else None
    return InvalidToolCall(text=unmarked(piece), name=told, error=error)


def _finite(written: str) -> float:
    """Return a number; one that no float holds is the largest there is, as JSON has no infinity."""
    largest = sys.float_info.max
    return min(max(float(written), -largest), largest)


def _refused(written: str) -> Any:
    raise ValueError(f"{written} is no JSON")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refused)


def _loads(written: str) -> Any:
    value = _DECODER.decode(written)
    json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        level = [part for whole in level for part in _parts(whole)]
    return value


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _without_blanks(text: str) -> str:
    return text[:200].translate({ord(blank): None for blank in BLANKS})


class _Scanner:
    """A place in a text that moves on."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    @property
    def at_end(self) -> bool:
        return self.place >= len(self.text)

    @property
    def peek(self) -> str:
        return self.text[self.place : self.place + 1]

    def skip(self) -> None:
        """Move behind blanks."""
        self.place = len(self.text) - len(self.text[self.place :].lstrip(BLANKS))

    def take(self, sign: str) -> bool:
        """Move behind a sign if it is here."""
        is_here = bool(sign) and self.text.startswith(sign, self.place)
        self.place += len(sign) * is_here
        return is_here

    def json(self) -> str | None:
        """Return the JSON here as written and move behind it; None if there is none."""
        try:
            _, end = _DECODER.raw_decode(self.text, self.place)
        except (ValueError, RecursionError):
            return None
        piece, self.place = self.text[self.place : end], end
        return piece

    def until(self, sign: str) -> str:
        """Return what stands before a sign, or all, and move there."""
        end = self.text.find(sign, self.place) if sign else -1
        end = len(self.text) if end < 0 else end
        piece, self.place = self.text[self.place : end], end
        return piece

    def rest(self) -> str:
        return self.until("")

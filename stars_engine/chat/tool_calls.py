"""Read tool calls from an answer; invalid calls are kept as text."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from stars_engine.chat.argument_checks import fault_in
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
_NAME = r'"(?:[^"\\]|\\.)*"'
HEAD = re.compile(rf'\{{\s*"name"\s*:\s*({_NAME})\s*,\s*"(?:arguments|parameters)"\s*:\s*')


@dataclass(frozen=True, slots=True)
class Calls:
    """The content and the tool calls of an answer.

    Attributes:
        content: The text outside the calls.
        valid: Calls of known tools whose arguments are an object.
        invalid: Everything else that was written as a call; no text is lost.
    """

    content: str
    valid: tuple[ToolCall, ...] = ()
    invalid: tuple[InvalidToolCall, ...] = ()


def start_of_calls(text: str, form: ToolFormat) -> int:
    """Return where the calls of a marked text begin; its length if there are none."""
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
    """Whether a whole marked text could be the beginning of a call."""
    stripped = text[:200].translate({ord(blank): None for blank in BLANKS})
    signs = (form.marker, form.tag, form.first, form.tag + form.first)
    return bool(stripped) and any(sign.startswith(stripped) for sign in signs)


def call_id(index: int, name: str, salt: str) -> str:
    """Return the id of a call, which is known when its name is written.

    It has nine letters and digits, as Mistral's templates require.

    Args:
        index: Which of the answer's calls it is, the invalid ones included.
        name: The name of the tool.
        salt: Makes the ids of an answer differ from those of other answers.
    """
    return sha256(f"{index}:{name}:{salt}".encode()).hexdigest()[:9]


def read_calls(text: str, form: ToolFormat, tools: Sequence[Tool], *, salt: str = "") -> Calls:
    """Read an answer's calls.

    Args:
        text: The marked answer.
        form: The format of calls, in the form of `marked_text`.
        tools: The tools that may be called.
        salt: Makes the call ids of this answer differ from those of other answers.
    """
    start = start_of_calls(text, form)
    if start == len(text):
        return Calls(unmarked(text))
    scanner = _Scanner(text[start:])
    said, pieces = _cut(scanner, form)
    pieces = [piece for piece in pieces if piece]
    if not pieces:  # the markers of a call, with nothing between them
        pieces, said = [scanner.text], ""
    known = {tool.name: tool for tool in tools}
    valid: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for number, piece in enumerate(pieces):
        call = _read(piece, form, known)
        if isinstance(call, InvalidToolCall):
            invalid.append(call)
        else:
            valid.append(call.replace(id=call_id(number, call.name, salt)))
    content = "\n".join(filter(None, (text[:start].rstrip(), said)))
    return Calls(unmarked(content), tuple(valid), tuple(invalid))


def _cut(scanner: _Scanner, form: ToolFormat) -> tuple[str, list[str]]:
    """Return the text after calls, and the calls as written."""
    if form.name == GENERIC.name:
        return _cut_generic(scanner)
    if form.name == LLAMA.name:
        scanner.skip()
        scanner.take(form.tag)
        scanner.skip()
        pieces = [scanner.json() or scanner.rest()]
        scanner.skip()
        while scanner.take(";") or scanner.peek == "{":  # more calls than the format allows
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
    """Return the items of a JSON list as written; the unreadable rest is one piece."""
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
    """Return the call after a marker as written, and any other text before its end."""
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


def _read(piece: str, form: ToolFormat, known: Mapping[str, Tool]) -> ToolCall | InvalidToolCall:
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
                # Models trained on one format may write the key of another one.
                arguments = value.get("arguments", value.get("parameters", {}))
    except (ValueError, RecursionError) as error:
        name = name or _name_in(unmarked(piece))
        return _invalid(piece, name, f"the call is not valid JSON: {error}")
    if not isinstance(name, str) or name not in known:
        names = ", ".join(sorted(known)) or "none"
        return _invalid(piece, name, f"unknown tool {name!r}; known tools: {names}")
    if arguments is None:  # some models write null for no arguments
        arguments = {}
    if not isinstance(arguments, dict):
        return _invalid(piece, name, f"the arguments are not an object: {arguments!r}")
    if fault := fault_in(arguments, known[name]):
        return _invalid(piece, name, fault)
    return ToolCall(name=name, arguments=arguments)


def _name_in(piece: str) -> Any:
    """Return the name in a call whose arguments are not valid JSON; None if it has none."""
    head = HEAD.match(piece)
    try:
        return head and _loads(head[1])
    except ValueError:
        return None


def _invalid(piece: str, name: Any, error: str) -> InvalidToolCall:
    known = name if isinstance(name, str) and name else None
    return InvalidToolCall(text=unmarked(piece), name=known, error=error)


def _finite(written: str) -> float:
    """Return a number, clipped to the range of finite floats because JSON has no infinity."""
    largest = sys.float_info.max
    return min(max(float(written), -largest), largest)


def _refused(written: str) -> Any:
    raise ValueError(f"{written} is not valid JSON")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refused)


def _loads(written: str) -> Any:
    value = _DECODER.decode(written)
    json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
        level = [part for whole in level for part in _parts(whole)]
    return value


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


class _Scanner:
    """A cursor in a text."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    @property
    def at_end(self) -> bool:
        return self.place >= len(self.text)

    @property
    def peek(self) -> str:
        return self.text[self.place : self.place + 1]

    def skip(self) -> None:
        """Move past blanks."""
        self.place = len(self.text) - len(self.text[self.place :].lstrip(BLANKS))

    def take(self, sign: str) -> bool:
        """Move past a sign if it is at the cursor."""
        is_here = bool(sign) and self.text.startswith(sign, self.place)
        self.place += len(sign) * is_here
        return is_here

    def json(self) -> str | None:
        """Return the JSON at the cursor as written and move past it; None if there is none."""
        try:
            _, end = _DECODER.raw_decode(self.text, self.place)
        except (ValueError, RecursionError):
            return None
        piece, self.place = self.text[self.place : end], end
        return piece

    def until(self, sign: str) -> str:
        """Return the text before a sign, or all of the rest, and move there."""
        end = self.text.find(sign, self.place) if sign else -1
        end = len(self.text) if end < 0 else end
        piece, self.place = self.text[self.place : end], end
        return piece

    def rest(self) -> str:
        return self.until("")

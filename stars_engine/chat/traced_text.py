"""Strings that record which of their characters a chat template wrote by itself.

Templates concatenate their own strings with contents, and may rewrite both: `{{ content | lower }}`
turns `<TOOL_CALL>` into `<tool_call>`. Only what a template wrote may become a control token, so
each character is traced through the operations of templates. Where that is not possible, characters
count as content.
"""
# ruff: noqa: D102 - the methods are those of str

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Self, SupportsIndex

_CONTENT, _TEMPLATE = b"\0", b"\1"
_RUN = re.compile(rb"\x00+|\x01+")


class TracedText(str):
    """A string of which each character is content or was written by a template.

    It equals, and hashes as, the same `str`. A plain `str` counts as content.

    Args:
        text: The characters.
        origins: One byte per character, 1 if the template wrote it; the default is content.
    """

    __slots__ = ("_origins",)
    _origins: bytes

    def __new__(cls, text: str = "", origins: bytes | None = None) -> Self:
        made = super().__new__(cls, str.__str__(text))
        made._origins = _CONTENT * len(made) if origins is None else origins
        return made

    def __str__(self) -> str:
        return self

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> TracedText:
        text = str.__getitem__(self, key)
        if isinstance(key, slice):
            return TracedText(text, self._origins[key])
        return TracedText(text, bytes([self._origins[key]]))

    def __add__(self, other: str) -> str:
        # Markup escapes what is added to it.
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return joined((self, other))

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> TracedText:
        return TracedText(str.__mul__(self, count), self._origins * count)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> TracedText:
        return _as_inputs(str.__mod__(self, values), (self, values))

    def join(self, parts: Iterable[str], /) -> TracedText:
        listed = list(parts)
        between = [self] * len(listed)
        return joined(list(chain.from_iterable(zip(between, listed, strict=True)))[1:])

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> TracedText:
        if not old:
            return _as_inputs(str.replace(self, old, new, count), (self, new))
        return TracedText.join(_traced(new), self.split(old, count))

    # --- parts ---

    def strip(self, chars: str | None = None, /) -> TracedText:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> TracedText:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> TracedText:
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str, /) -> TracedText:
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str, /) -> TracedText:
        return self[: len(str.removesuffix(self, suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.split(self, sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.rsplit(self, sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._located(str.splitlines(self, keepends), 0)

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, between, after = self._located(str.partition(self, sep), 0)
        return before, between, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, between, after = self._located(str.rpartition(self, sep), 0)
        return before, between, after

    def _located(self, parts: Iterable[str], gap: int) -> list[str]:
        """Return parts as they follow each other, with a gap of at least this length between."""
        found: list[str] = []
        position = 0
        for part in parts:
            start = str.find(self, part, position)
            found.append(self[start : start + len(part)])
            position = start + len(part) + gap
        return found

    # --- changed characters ---

    def capitalize(self) -> TracedText:
        return self._changed(str.capitalize(self))

    def casefold(self) -> TracedText:
        return self._changed(str.casefold(self))

    def lower(self) -> TracedText:
        return self._changed(str.lower(self))

    def swapcase(self) -> TracedText:
        return self._changed(str.swapcase(self))

    def title(self) -> TracedText:
        return self._changed(str.title(self))

    def upper(self) -> TracedText:
        return self._changed(str.upper(self))

    def _changed(self, text: str) -> TracedText:
        """Return text whose characters replace those of this one, unless their number differs."""
        return TracedText(text, self._origins) if len(text) == len(self) else TracedText(text)

    # --- everything else: the template's text if all inputs are ---

    def center(self, *values: Any) -> TracedText:
        return _as_inputs(str.center(self, *values), (self, *values))

    def expandtabs(self, *values: Any, **named: Any) -> TracedText:
        return _as_inputs(str.expandtabs(self, *values, **named), (self,))

    def ljust(self, *values: Any) -> TracedText:
        return _as_inputs(str.ljust(self, *values), (self, *values))

    def rjust(self, *values: Any) -> TracedText:
        return _as_inputs(str.rjust(self, *values), (self, *values))


def template_text(text: str) -> TracedText:
    """Return text that a template wrote."""
    return TracedText(text, _TEMPLATE * len(text))


def with_template_spans(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Return content with spans, each a start and an end, that count as the template's."""
    origins = bytearray(len(text))
    for start, end in spans:
        origins[start:end] = _TEMPLATE * (end - start)
    return TracedText(text, bytes(origins)) if any(origins) else text


def joined(parts: Iterable[str]) -> TracedText:
    """Concatenate strings; a plain `str` counts as content."""
    listed = list(parts)
    return TracedText("".join(listed), b"".join(map(_origins_of, listed)))


def is_template_text(text: str) -> bool:
    """Return whether a template wrote all characters."""
    return _CONTENT not in _origins_of(text)


def runs_of(text: str) -> list[tuple[str, bool]]:
    """Split text into runs of one origin, each with True if a template wrote it."""
    plain, origins = str.__str__(text), _origins_of(text)
    return [
        (plain[run.start() : run.end()], run[0][:1] == _TEMPLATE) for run in _RUN.finditer(origins)
    ]


def traced_function(function: Callable[..., Any], num_passed: int = 0) -> Callable[..., Any]:
    """Return a function whose result, if it is a `str`, is a template's if all arguments are.

    Args:
        function: The function.
        num_passed: How many arguments, from the first, do not count.
    """

    def traced(*values: Any, **named: Any) -> Any:
        result = function(*values, **named)
        inputs = *values[num_passed:], *named.values()
        return _as_inputs(result, inputs) if type(result) is str else result

    return traced


def _traced(text: str) -> TracedText:
    return text if isinstance(text, TracedText) else TracedText(text)


def _origins_of(text: str) -> bytes:
    if isinstance(text, TracedText):
        return text._origins  # noqa: SLF001 - hidden from templates only
    return _CONTENT * len(text)


def _as_inputs(text: str, inputs: Any) -> TracedText:
    return template_text(text) if _are_template_text(inputs) else TracedText(text)


def _are_template_text(value: Any) -> bool:
    """Whether all strings in a value are a template's; numbers may come from contents."""
    if isinstance(value, str):
        return is_template_text(value)
    if isinstance(value, Mapping):
        return all(map(_are_template_text, chain.from_iterable(value.items())))
    if isinstance(value, list | tuple):
        return all(map(_are_template_text, value))
    return value is None or isinstance(value, bool)

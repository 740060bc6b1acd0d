r"""Rewrite regular expressions of strings for the JSON text of these strings.

A schema's pattern matches the characters of a string; a grammar matches the JSON text between the
quotes. Implementations of JSON Schema disagree on some classes (`\d` includes Arabic digits in
Python, but not in ECMAScript). The text that a grammar allows matches under all interpretations.
"""

from __future__ import annotations

import re
import re._constants as ops  # type: ignore[import-not-found]  # no types for it
import re._parser as parser  # type: ignore[import-not-found]
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

from stars_engine.json_schema.characters import (
    ESCAPED,
    LAST,
    SHORT,
    Ranges,
    category,
    complement,
    of_codes,
)

_MAX_REPEAT = 100_000
_MAX_LENGTH = 10**9

CHARACTER = r'([^"\\\x00-\x1F\x7F]|\\["\\bfnrt]|\\u00(0[0-7bef]|1[0-9a-f]|7f))'


class UnsupportedPatternError(ValueError):
    """A grammar cannot express a regular expression; the message says why."""


@dataclass(frozen=True)
class Pattern:
    """A regular expression in Python's syntax, which matches somewhere in a string.

    Raises:
        UnsupportedPatternError: The expression is invalid, or a grammar cannot express it.
    """

    source: str

    def __post_init__(self) -> None:
        self.expression(negated=False)

    def expression(self, *, negated: bool) -> str:
        """Return the terminal expression for the text of all strings that match.

        Args:
            negated: Whether the matches will be excluded; the expression may then match too much,
                but never too little.
        """
        return _expression(self.source, negated)

    def matches(self, text: str) -> bool:
        """Return whether it matches somewhere under every interpretation of its classes."""
        return all(found is not None for found in self._readings(text))

    def may_match(self, text: str) -> bool:
        """Return whether it matches somewhere under any interpretation of its classes."""
        return any(found is not None for found in self._readings(text))

    def _readings(self, text: str) -> list[re.Match[str] | None]:
        found = re.search(self.source, text)
        if "\\" not in self.source and not self.source.startswith("(?"):
            return [found]
        try:
            return [found, re.compile(self.source, re.ASCII).search(text)]
        except ValueError:  # the pattern has the Unicode flag
            return [found]


def anywhere_of_length(least: int, most: int | None) -> str:
    """Return the terminal expression for the text of strings with bounded length."""
    if least > _MAX_LENGTH:
        raise UnsupportedPatternError(f"`minLength`: {least} is above {_MAX_LENGTH} characters")
    if most is not None and most > _MAX_LENGTH:  # no answer is this long
        most = None
    return f"/{CHARACTER}{{{least},{'' if most is None else most}}}/"


def between_quotes(
    patterns: Sequence[Pattern],
    avoided: Sequence[Pattern] = (),
    lengths: tuple[int, int | None] = (0, None),
) -> str:
    """Return the terminal expression for the text of strings.

    Args:
        patterns: Patterns that must all match somewhere in the string.
        avoided: Patterns that must not match.
        lengths: Minimum and maximum number of characters.
    """
    text = _ALL if lengths == (0, None) else anywhere_of_length(*lengths)
    for pattern in patterns:
        text = _both(text, pattern.expression(negated=False))
    for pattern in avoided:
        text = _without(text, pattern.expression(negated=True))
    return text


def written(text: str) -> str:
    """Return the JSON text of a string, with quotes and without escapes for letters."""
    return '"' + "".join(map(_json_character, text)) + '"'


def _json_character(letter: str) -> str:
    code = ord(letter)
    if code in SHORT:
        return "\\" + SHORT[code]
    return f"\\u{code:04x}" if code in ESCAPED or 0xD800 <= code <= 0xDFFF else letter


# --- expressions of terminals ---

NOTHING = "NOTHING"  # no text at all
_EMPTY = '""'
_ALL = f"/{CHARACTER}*/"


def _join(first: str, second: str) -> str:
    if NOTHING in (first, second):
        return NOTHING
    if first == _EMPTY:
        return second
    return first if second == _EMPTY else f"{first} {second}"


def either(parts: Iterable[str]) -> str:
    """Return the terminal expression for any of several parts; `NOTHING` if there are none."""
    kept = list(dict.fromkeys(part for part in parts if part != NOTHING))
    if not kept:
        return NOTHING
    return kept[0] if len(kept) == 1 else "(" + " | ".join(f"({part})" for part in kept) + ")"


def _both(first: str, second: str) -> str:
    if NOTHING in (first, second):
        return NOTHING
    if first == _ALL:
        return second
    return first if second == _ALL else f"(({first}) & ({second}))"


def _without(first: str, second: str) -> str:
    return first if second == NOTHING else f"(({first}) & ~({second}))"


_INEXPRESSIBLE = {
    ops.GROUPREF: "a back-reference",
    ops.GROUPREF_EXISTS: "a conditional group",
    ops.ATOMIC_GROUP: "an atomic group",
    ops.POSSESSIVE_REPEAT: "a possessive repetition",
}


@cache
def _expression(source: str, negated: bool) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # ambiguous nested sets
            tree = parser.parse(source)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        raise UnsupportedPatternError(f"{source!r} is not a regular expression: {error}") from None
    if tree.state.flags & (re.MULTILINE | re.LOCALE):
        raise UnsupportedPatternError(f"{source!r} has flags that a grammar cannot express")
    translation = _Translation(source, tree.state.flags)
    items = list(tree)
    for kind, name in _INEXPRESSIBLE.items():
        if _has(items, kind):
            raise UnsupportedPatternError(f"{name} in {source!r}")
    if not _has_beginning(items):
        return _join(_ALL, translation.follow(items, _ALL, start=False, negated=negated))
    later = translation.follow(items, _ALL, start=False, negated=negated)
    here = translation.follow(items, _ALL, start=True, negated=negated)
    return either([here, _join(f"/{CHARACTER}+/", later)])


def _has(items: Any, kind: Any, *values: Any) -> bool:
    """Whether a parsed pattern contains a part of a kind."""
    for part in items:
        if (
            isinstance(part, tuple)
            and len(part) == 2
            and part[0] is kind
            and (not values or part[1] in values)
        ):
            return True
        if isinstance(part, (tuple, list, parser.SubPattern)) and _has(part, kind, *values):
            return True
    return False


def _has_beginning(items: Any) -> bool:
    return _has(items, ops.AT, ops.AT_BEGINNING, ops.AT_BEGINNING_STRING)


def _asserts(items: Any) -> bool:
    return any(_has(items, kind) for kind in (ops.AT, ops.ASSERT, ops.ASSERT_NOT))


class _Translation:
    """Rewrites a parsed regular expression."""

    def __init__(self, source: str, flags: int) -> None:
        self._source, self._flags = source, flags

    def follow(self, items: Sequence[Any], rest: str, *, start: bool, negated: bool) -> str:
        """Return the expression for parts of a pattern and everything after them.

        Args:
            items: The parts, as parsed by Python.
            rest: The expression for the rest of the string.
            start: Whether the string begins here.
            negated: See `Pattern.expression`.
        """
        if not items:
            return rest
        plain = list(takewhile(lambda item: not _asserts([item]), items))
        if plain:
            later = items[len(plain) :]
            if start and self._may_be_empty(plain) and _has_beginning(later):
                raise self._unsupported("`^` after a part that may be empty")
            regex = self.plain(plain, negated=negated)
            after = self.follow(later, rest, start=False, negated=negated)
            return _join(f"/{regex}/" if regex else _EMPTY, after)
        (kind, value), later = items[0], items[1:]
        if kind is ops.AT:
            return self._at(value, later, rest, start=start, negated=negated)
        if kind in (ops.ASSERT, ops.ASSERT_NOT):
            after = self.follow(later, rest, start=start, negated=negated)
            return self._look(kind, value, after, start=start, negated=negated)
        forms = [[*form, *later] for form in self._forms(kind, value)]
        return either(self.follow(form, rest, start=start, negated=negated) for form in forms)

    def _forms(self, kind: Any, value: Any) -> list[list[Any]]:
        """Return the alternative sequences of a part that contains assertions."""
        if kind is ops.SUBPATTERN and not (value[1] or value[2]):
            return [list(value[3])]
        if kind is ops.BRANCH:
            return [list(branch) for branch in value[1]]
        if kind in (ops.MAX_REPEAT, ops.MIN_REPEAT) and value[1] == 1:
            return [list(value[2])] if value[0] else [list(value[2]), []]
        raise self._unsupported("`^`, `$` or look-ahead inside a repetition or a group with flags")

    def _look(self, kind: Any, value: Any, after: str, *, start: bool, negated: bool) -> str:
        direction, inner = value
        if direction < 0:
            raise self._unsupported("look-behind")
        is_not = kind is ops.ASSERT_NOT
        ahead = self.follow(list(inner), _ALL, start=start, negated=negated ^ is_not)
        return _without(after, ahead) if is_not else _both(after, ahead)

    def _at(
        self, value: Any, later: Sequence[Any], rest: str, *, start: bool, negated: bool
    ) -> str:
        if value in (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING):
            return self.follow(later, rest, start=start, negated=negated) if start else NOTHING
        if value not in (ops.AT_END, ops.AT_END_STRING):
            raise self._unsupported(r"`\b` or `\B`")
        # Only an empty text may follow. In Python, `$` also matches before a final line break.
        end = self.follow(later, rest, start=start, negated=negated)
        ends = _EMPTY if value is ops.AT_END_STRING or not negated else r'("" | "\\n")'
        return _both(end, ends)

    def _unsupported(self, what: str) -> UnsupportedPatternError:
        return UnsupportedPatternError(f"{what} in {self._source!r}")

    def _may_be_empty(self, items: Sequence[Any]) -> bool:
        return bool(parser.SubPattern(parser.State(), list(items)).getwidth()[0] == 0)

    # --- parts without assertions: regular expressions in Rust's syntax ---

    def plain(self, items: Iterable[Any], *, negated: bool) -> str:
        """Return a regular expression for parts without assertions."""
        return "".join(self._part(kind, value, negated=negated) for kind, value in items)

    def _part(self, kind: Any, value: Any, *, negated: bool) -> str:
        match kind:
            case ops.LITERAL | ops.NOT_LITERAL | ops.ANY | ops.IN:
                return of_codes(self._characters(kind, value, negated=negated))
            case ops.BRANCH:
                inner = "|".join(self.plain(branch, negated=negated) for branch in value[1])
            case ops.SUBPATTERN:
                _, added, removed, items = value
                if (added | removed) & ~(re.IGNORECASE | re.DOTALL):
                    raise self._unsupported("flags of a group")
                flags = (self._flags | added) & ~removed
                inner = _Translation(self._source, flags).plain(items, negated=negated)
            case ops.MAX_REPEAT | ops.MIN_REPEAT:
                least, most, items = value
                if least > _MAX_REPEAT or (most is not ops.MAXREPEAT and most > _MAX_REPEAT):
                    raise self._unsupported(f"more than {_MAX_REPEAT} repetitions")
                bound = "" if most is ops.MAXREPEAT else most
                return f"({self.plain(items, negated=negated)}){{{least},{bound}}}"
            case _:
                raise self._unsupported(str(kind).lower())
        return f"({inner})"

    def _characters(self, kind: Any, value: Any, *, negated: bool) -> Ranges:
        """Return the characters that a single-character part matches."""
        if kind is ops.LITERAL:
            return self._cases([(value, value)])
        if kind is ops.NOT_LITERAL:
            return complement(self._cases([(value, value)], wide=not negated))
        if kind is ops.IN:
            return self._class(value, negated=negated)
        if self._flags & re.DOTALL:
            return [(0, LAST)]
        breaks = [(10, 10)] if negated else [(10, 10), (13, 13), (0x2028, 0x2029)]
        return complement(breaks)

    def _class(self, parts: Sequence[Any], *, negated: bool) -> Ranges:
        is_not = parts[0][0] is ops.NEGATE
        wide = negated ^ is_not  # the union of all interpretations, because it is excluded
        ranges: Ranges = []
        for kind, value in parts[is_not:]:
            match kind:
                case ops.LITERAL:
                    ranges.append((value, value))
                case ops.RANGE:
                    ranges.append(tuple(value))
                case ops.CATEGORY:
                    ranges += category(value, wide=wide)
        ranges = self._cases(ranges, wide=wide)
        return complement(ranges) if is_not else ranges

    def _cases(self, ranges: Ranges, *, wide: bool = False) -> Ranges:
        """Return characters with their other case if case is ignored, for ASCII letters."""
        if not self._flags & re.IGNORECASE:
            return ranges
        found = list(ranges)
        for first, last in ranges:
            for low, high, shift in ((65, 90, 32), (97, 122, -32)):
                if max(first, low) <= min(last, high):
                    found.append((max(first, low) + shift, min(last, high) + shift))
        if wide:  # letters beyond ASCII may also have other cases
            found.append((0x80, LAST))
        return found

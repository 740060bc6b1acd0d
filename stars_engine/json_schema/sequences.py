"""Rules for sequences of properties and items, separated by commas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Define = Callable[[str], str]  # returns a name for the source of a rule

_MAX_COUNTED = 200


class UncountableError(ValueError):
    """There are too many properties or items to count; the message says which."""


def properties(
    fields: Sequence[tuple[str, bool]],
    others: str | None,
    counts: tuple[int, int | None],
    comma: str,
    define: Define,
) -> tuple[str | None, bool]:
    """Return the rule source for the properties of an object, and whether there may be none.

    Args:
        fields: Each named property, in order, and whether it is required.
        others: A property with another name, or None.
        counts: Minimum and maximum number of properties.
        comma: The separator.
        define: Returns a name for the source of a rule.

    Raises:
        UncountableError: There are too many properties to count.
    """
    num_required = sum(is_required for _, is_required in fields)
    least, most = counts
    is_counted = least > num_required
    if most is not None and (others is not None or most < len(fields)):
        is_counted = True
    if is_counted:
        return _Counted(
            fields, others, counts, comma, define
        ).written(), not num_required and not least
    first = [(text, text, is_required) for text, is_required in fields]
    parts = [
        (text, f"{comma} {text}" if is_required else f"({comma} {text})?", is_required)
        for text, _, is_required in first
    ]
    if others is not None:
        parts.append((f"{others} ({comma} {others})*", f"({comma} {others})*", False))
    if not parts:
        return None, True
    return _nonempty(parts, define)[0], not num_required


def _nonempty(parts: list[tuple[str, str, bool]], define: Define) -> tuple[str, str]:
    """Return the source for at least one of the parts, and for any of them after another part.

    The parts are split recursively in halves, which keeps rules shallow; a chain of rules would be
    as deep as there are parts.

    Args:
        parts: The source of each part at the beginning and after others, and whether it is
            required.
        define: Returns a name for the source of a rule.
    """
    if len(parts) == 1:
        return parts[0][0], parts[0][1]
    middle = len(parts) // 2
    left, left_after = _nonempty(parts[:middle], define)
    right, right_after = _nonempty(parts[middle:], define)
    right_after = define(right_after)
    some = f"{left} {right_after}" if len(parts) == 2 else f"{define(left)} {right_after}"
    if not any(is_required for _, _, is_required in parts[:middle]):
        some += f" | {right}" if len(parts) == 2 else f" | {define(right)}"
    return some, f"{define(left_after)} {right_after}"


class _Counted:
    """Properties with a bounded count: one rule for each position and count."""

    def __init__(
        self,
        fields: Sequence[tuple[str, bool]],
        others: str | None,
        counts: tuple[int, int | None],
        comma: str,
        define: Define,
    ) -> None:
        self._fields, self._others, self._counts = fields, others, counts
        self._comma, self._define = comma, define
        self._cap = min(max(counts[0], counts[1] or 0, 1), len(fields) + 1)
        if len(fields) > _MAX_COUNTED:
            raise UncountableError(
                f"`minProperties`, `maxProperties`: more than {_MAX_COUNTED} named properties"
            )

    def written(self) -> str | None:
        """Return the source for one property or more; None if there can be none."""
        most = self._counts[1]
        if most == 0:
            return None
        after: list[str | None] = [self._end(count) for count in range(self._cap + 1)]
        for text, is_required in reversed(self._fields):
            before: list[str | None] = []
            for count in range(self._cap + 1):
                following = after[min(count + 1, self._cap)]
                is_full = most is not None and count + 1 > most
                forms = []
                if following is not None and not is_full:
                    comma = f"{self._comma} " if count else ""
                    forms.append(f"{comma}{text} {following}")
                if not is_required and after[count] is not None:
                    forms.append(str(after[count]))
                before.append(self._define(" | ".join(forms)) if forms else None)
            after = before
        return after[0]

    def _end(self, count: int) -> str | None:
        """Return the source for what follows the last named property after `count` properties."""
        least, most = self._counts
        missing = least - count
        room = None if most is None else most - count
        if count == 0:
            # The case without any property is handled elsewhere.
            if self._others is None or missing > 1 or room == 0:
                return None
            most_after = None if room is None else room - 1
            after = _repeated(f"{self._comma} {self._others}", 0, most_after)
            return self._define(f"{self._others} {after}")
        if missing > 1 or (missing == 1 and (self._others is None or room == 0)):
            return None
        if self._others is None or room == 0:
            return self._define('""')
        return self._define(_repeated(f"{self._comma} {self._others}", max(missing, 0), room))


def items(
    prefix: Sequence[str],
    rest: str | None,
    counts: tuple[int, int | None],
    comma: str,
    define: Define,
) -> tuple[str | None, bool]:
    """Return the rule source for the items of an array, and whether there may be none.

    Args:
        prefix: The first items.
        rest: Any further item, or None.
        counts: Minimum and maximum number of items.
        comma: The separator.
        define: Returns a name for the source of a rule.

    Raises:
        UncountableError: There are too many items to count.
    """
    least, most = counts
    most_prefix = len(prefix) if most is None else min(len(prefix), most)
    if most_prefix > max(_MAX_COUNTED, least):
        raise UncountableError(f"`prefixItems`: more than {_MAX_COUNTED} optional items")
    after = ""
    more = None if most is None else most - len(prefix)
    if rest is not None and (more is None or more > 0):
        if not prefix:
            most_after = None if more is None else more - 1
            return f"{rest} {_repeated(f'{comma} {rest}', least - 1, most_after)}", least == 0
        after = _repeated(f"{comma} {rest}", least - len(prefix), more)
    if not most_prefix:
        return None, True
    if most_prefix < len(prefix):
        after = ""
    for index in range(most_prefix - 1, 0, -1):
        after = f"{comma} {prefix[index]} {after}".strip()
        if index >= least:
            after = define(f"({after})?")
    return f"{prefix[0]} {after}".strip(), least == 0


def _repeated(text: str, least: int, most: int | None) -> str:
    if most == 0:
        return '""'
    return f"({text}){{{max(0, least)},{'' if most is None else most}}}"

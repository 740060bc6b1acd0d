"""Properties and items one after the other, with commas between them and none at the ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Define = Callable[[str], str]  # gives a rule's source a name

_MAX_COUNTED = 200


class UncountableError(ValueError):
    """More properties or items than a grammar counts; the message says which."""


def properties(
    fields: Sequence[tuple[str, bool]],
    others: str | None,
    counts: tuple[int, int | None],
    comma: str,
    define: Define,
) -> tuple[str | None, bool]:
    """Return what stands for the properties of an object, and whether there may be none.

    Args:
        fields: Each named property, in order, and whether it must be there.
        others: A property of another name, None if there are none.
        counts: Least and greatest number of properties.
        comma: What stands between two.
        define: Gives a rule's source a name.

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
    """Return what stands for some of the parts, and for some or none after a part before them.

    Halves of halves: a rule for each part in a chain would be as deep as there are parts.

    Args:
        parts: What stands for each first of all, and after others; whether it must be there.
        define: Gives a rule's source a name.
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
    """Properties of which there must be a number: one rule for each place and count."""

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
                f"`minProperties`, `maxProperties`: among more than {_MAX_COUNTED} properties"
            )

    def written(self) -> str | None:
        """Return what stands for one property or more; None if there can be none."""
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
        """Return what may follow the last named property, where so many were written."""
        least, most = self._counts
        missing = least - count
        room = None if most is None else most - count
        if count == 0:
            # With no property at all, this part is not asked for.
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
    """Return what stands for the items of an array, and whether there may be none.

    Args:
        prefix: The first items.
        rest: Any further item, None if there are none.
        counts: Least and greatest number of items.
        comma: What stands between two.
        define: Gives a rule's source a name.

    Raises:
        UncountableError: There are too many items to count.
    """
    least, most = counts
    most_prefix = len(prefix) if most is None else min(len(prefix), most)
    if most_prefix > max(_MAX_COUNTED, least):
        raise UncountableError(f"`prefixItems`: more than {_MAX_COUNTED} that may be left out")
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

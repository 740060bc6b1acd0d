"""Find the name that an unknown one was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def near_name(name: str, known: Collection[str]) -> str | None:
    """Return the known name that is most like another, or the one of which it is a part.

    Args:
        name: The unknown name.
        known: The known names.
    """
    near = difflib.get_close_matches(name, sorted(known), n=1)
    if near:
        return near[0]
    if len(name) < 3:
        return None
    longer = [other for other in known if other.startswith(name)]
    longer = longer or [other for other in known if name in other.split("_")]
    return longer[0] if len(longer) == 1 else None

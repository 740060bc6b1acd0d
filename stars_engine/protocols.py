"""Whether an object implements a protocol, whatever the Python version."""

from __future__ import annotations

from functools import cache

from typing_extensions import get_protocol_members

_members = cache(get_protocol_members)  # it searches the classes each time


def has_members(value: object, protocol: type) -> bool:
    """Return whether an object has all members of a protocol.

    Members that the object forwards with `__getattr__` count, as for a wrapper. With `isinstance`
    and a runtime-checkable protocol, they count only before Python 3.12.
    """
    return all(hasattr(value, name) for name in _members(protocol))

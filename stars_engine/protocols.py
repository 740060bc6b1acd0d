"""Read attributes of third-party objects, which may be properties that raise."""

from __future__ import annotations

from functools import cache
from typing import Any

from typing_extensions import get_protocol_members

from stars_engine.problems import is_for_program

_members = cache(get_protocol_members)  # it searches the classes each time


def has_members(value: object, protocol: type) -> bool:
    """Return whether an object has all members of a protocol.

    Members that the object forwards with `__getattr__` count, as for a wrapper. With `isinstance`
    and a runtime-checkable protocol, they count only before Python 3.12. Members of its class count
    even if they raise when they are read: whoever uses them gets the error.
    """
    return all(_has(value, name) for name in _members(protocol))


def read_optional(value: object, name: str, default: Any = None) -> Any:
    """Return an attribute of an object; the default if it is missing or cannot be read."""
    try:
        return getattr(value, name, default)
    except BaseException as error:
        if is_for_program(error):
            raise
        return default


def _has(value: object, name: str) -> bool:
    try:
        return hasattr(value, name)
    except BaseException as error:
        if is_for_program(error):
            raise
        return hasattr(type(value), name)

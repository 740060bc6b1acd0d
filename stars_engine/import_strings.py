"""Import callables by strings such as 'package.module:name', which config files may contain."""

from __future__ import annotations

import importlib
from functools import reduce
from typing import Any

from stars_engine.protocols import read_optional

_LONGEST = 255  # the limit of file names


def names_an_object(text: str) -> bool:
    """Return whether a string has the form 'package.module:name'."""
    module, _, name = text.partition(":")
    return all(part.isidentifier() for part in [*module.split("."), *name.split(".")])


def check_name(function: Any) -> Any:
    """Return a callable, or the name of one, unchanged.

    Raises:
        ValueError: A string does not have the form 'package.module:name'.
    """
    if isinstance(function, str) and not names_an_object(function):
        raise ValueError(
            "the name of a callable has the form 'package.module:name', as in "
            "'my_package.rewards:polite'"
        )
    if isinstance(function, str) and len(function) > _LONGEST:
        raise ValueError(f"a name of {len(function)} characters is too long; at most {_LONGEST}")
    return function


def named_object(function: Any) -> Any:
    """Return a callable; import it if it is given by name.

    Raises:
        ImportError: The module or the name does not exist, or the module raised an error.
        TypeError: The name does not refer to a callable.
    """
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    try:
        home = importlib.import_module(module)
    except ImportError:
        raise
    except (Exception, SystemExit) as error:  # importing a module runs its code
        raise ImportError(f"{module} raised {type(error).__name__}: {error}") from error
    try:
        found = reduce(getattr, name.split("."), home)
    except AttributeError as error:
        raise ImportError(str(error)) from error
    if not callable(found):
        raise TypeError(f"{function!r} is {type(found).__name__}, not a callable")
    return found


def name_of(function: Any) -> str:
    """Return the name of a callable, or of its class if it has none.

    The `repr` of a callable object may be long, slow or fail.
    """
    name = read_optional(function, "__name__")
    return name[:_LONGEST] if isinstance(name, str) else type(function).__name__

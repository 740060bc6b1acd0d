"""Objects by name: 'package.module:name', which a file can hold where it cannot hold the object."""

from __future__ import annotations

import importlib
from functools import reduce
from typing import Any

_LONGEST = 255  # file names are no longer


def names_an_object(text: str) -> bool:
    """Return whether a text has the form 'package.module:name'."""
    module, _, name = text.partition(":")
    return all(part.isidentifier() for part in [*module.split("."), *name.split(".")])


def check_name(function: Any) -> Any:
    """Return a callable, or its name, as it is.

    Raises:
        ValueError: It is a text of another form.
    """
    if isinstance(function, str) and not names_an_object(function):
        raise ValueError(
            "a callable is named 'package.module:name', as in 'my_package.rewards:polite'"
        )
    if isinstance(function, str) and len(function) > _LONGEST:
        raise ValueError(f"a name of {len(function)} characters is too long; at most {_LONGEST}")
    return function


def named_object(function: Any) -> Any:
    """Return a callable, imported if it is given by name.

    Raises:
        ImportError: There is no such module or name, or the module raised an error.
        TypeError: What is there is no callable.
    """
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    try:
        home = importlib.import_module(module)
    except ImportError:
        raise
    except (Exception, SystemExit) as error:  # it runs, and may do anything
        raise ImportError(f"{module} raised {type(error).__name__}: {error}") from error
    try:
        found = reduce(getattr, name.split("."), home)
    except AttributeError as error:
        raise ImportError(str(error)) from error
    if not callable(found):
        raise TypeError(f"{function!r} is {type(found).__name__}, not a callable")
    return found

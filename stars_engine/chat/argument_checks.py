"""Check the arguments of tool calls for what their grammar cannot express."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

from stars_engine.errors import needs_extra
from stars_engine.json_schema.compiling import unexpressed
from stars_engine.messages import Tool

_MAX_SHOWN = 200
# Keywords that may refuse a value because a part of them accepts it.
_INVERTING = frozenset(
    {"not", "oneOf", "if", "contains", "unevaluatedItems", "unevaluatedProperties"}
)
_inverted: ContextVar[bool] = ContextVar("inverted", default=False)


def arguments_schema(tool: Tool) -> str:
    """Return the schema of a tool's arguments as JSON."""
    return json.dumps({**tool.parameters, "type": "object"})


def unexpressed_of(tools: Iterable[Tool]) -> dict[str, str]:
    """Return what a grammar cannot express of the arguments of tools, by name of the tool.

    Raises:
        MissingExtraError: llguidance is not installed.
    """
    found = {tool.name: unexpressed(arguments_schema(tool)) for tool in tools}
    return {name: reason for name, reason in found.items() if reason}


def fault_in(arguments: dict[str, Any], tool: Tool) -> str:
    """Return what is wrong with the arguments of a call; empty if nothing is.

    Only tools that are not strict are checked, if their grammar does not express the whole schema.
    Parts that the validator cannot read either are not checked: patterns of another dialect,
    references to other documents, unknown types.
    """
    if tool.strict or not unexpressed(schema := arguments_schema(tool)):
        return ""
    error = next(iter(_validator_of(schema).iter_errors(arguments)), None)
    if error is None:
        return ""
    place = "".join(f".{part}" for part in error.absolute_path)
    return f"the arguments{place} do not conform to the schema: {error.message[:_MAX_SHOWN]}"


@lru_cache(maxsize=256)
def _validator_of(schema: str) -> Any:
    with needs_extra("grammar"):
        from jsonschema import Draft202012Validator  # noqa: PLC0415 - optional extra
        from jsonschema.validators import extend, validator_for  # noqa: PLC0415
        from referencing import Registry  # noqa: PLC0415
    read = json.loads(schema)
    kind = validator_for(read, default=Draft202012Validator)
    readable = {name: _where_readable(name, check) for name, check in kind.VALIDATORS.items()}
    return extend(kind, readable)(read, registry=Registry())  # an empty registry fetches nothing


def _where_readable(name: str, check: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    """Return the check of a keyword that reports nothing if it cannot read its value.

    Within keywords that invert a result, the whole keyword is not read.
    """

    def errors(*asked: Any) -> Iterator[Any]:
        outer = _inverted.get()
        token = _inverted.set(outer or name in _INVERTING)
        try:
            found = list(check(*asked) or ())
        except Exception:  # of any kind, because the schema is not valid
            if outer:
                raise
            found = []
        finally:
            _inverted.reset(token)
        yield from found

    return errors

"""Check the arguments of tool calls for what their grammar cannot express."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from stars_engine.errors import needs_extra
from stars_engine.json_schema.compiling import unexpressed
from stars_engine.messages import Tool

_MAX_SHOWN = 200


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
    A schema that the validator cannot read either is not checked.
    """
    if tool.strict or not unexpressed(schema := arguments_schema(tool)):
        return ""
    validator = _validator_of(schema)
    try:
        error = validator and next(iter(validator.iter_errors(arguments)), None)
    except Exception:  # noqa: BLE001 - patterns of another dialect, references to other documents
        return ""
    if error is None:
        return ""
    place = "".join(f".{part}" for part in error.absolute_path)
    return f"the arguments{place} do not conform to the schema: {error.message[:_MAX_SHOWN]}"


@lru_cache(maxsize=256)
def _validator_of(schema: str) -> Any:
    with needs_extra("grammar"):
        from jsonschema import Draft202012Validator, SchemaError  # noqa: PLC0415 - optional extra
        from jsonschema.validators import validator_for  # noqa: PLC0415
        from referencing import Registry  # noqa: PLC0415
    read = json.loads(schema)
    kind = validator_for(read, default=Draft202012Validator)
    try:
        kind.check_schema(read)
    except SchemaError:
        return None
    return kind(read, registry=Registry())  # an empty registry fetches nothing

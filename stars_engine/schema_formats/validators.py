"""Find pydantic validators that reject values which their own JSON schemas allow.

Validators are functions, so only examples can tell. Only the validators of types are tried: those
of pydantic, of libraries and of classes with a core schema of their own. The validators that users
attach to fields and models are their own checks of an answer, and may have side effects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import SchemaError, SchemaValidator

from stars_engine.json_schema.drawing import examples

_HOOK = "__get_pydantic_core_schema__"
# Types that strict validation of Python objects takes only as instances, which JSON never has.
_INSTANCES = frozenset(
    (
        *("date", "datetime", "time", "timedelta", "bytes", "uuid", "decimal", "fraction"),
        *("complex", "enum", "tuple", "set", "frozenset", "url", "multi-host-url"),
        *("lax-or-strict", "json-or-python", "dataclass"),
    )
)
_NOT_VALUES = frozenset(
    (
        *("model", "dataclass", "typed-dict", "call", "arguments", "definitions"),
        *("definition-ref", "model-field", "dataclass-field", "typed-dict-field"),
    )
)


def has_own_validator(schema: Mapping[str, Any]) -> bool:
    """Whether a type validates its values with a function of its own."""
    function = schema.get("function")
    if isinstance(function, Mapping) and _is_of_a_type(function["function"]):
        return True
    metadata = schema.get("metadata") or {}
    return schema["type"] not in _NOT_VALUES and bool(metadata.get("pydantic_js_functions"))


def needs_instance(schema: Mapping[str, Any], *, strict: bool) -> bool:
    """Whether a type, behind a function that reads Python objects, accepts only instances."""
    return schema["type"] in _INSTANCES and bool(schema.get("strict", strict))


def rejected(
    found: Mapping[str, Any], schema: Any, config: Any, definitions: Mapping[Any, Any]
) -> str | None:
    """Return a JSON text that a JSON schema allows and its core schema rejects; None if none is.

    Args:
        found: The JSON schema.
        schema: The core schema.
        config: The core config.
        definitions: The JSON schemas to which it may refer.
    """
    drawn = _texts({**found, "$defs": definitions} if "$ref" in repr(found) else found)
    return next((text for text in drawn if not accepts(schema, config, text)), None)


def accepts(schema: Any, config: Any, text: str) -> bool:
    """Whether a core schema accepts a JSON text; true if it refers to definitions elsewhere."""
    try:
        validator = SchemaValidator(schema, config)
    except SchemaError:
        return True
    try:
        validator.validate_json(text)
    except Exception:  # noqa: BLE001 - of validators that call functions
        return False
    return True


def has_valid_default(schema: Any, config: Any) -> bool:
    """Whether the default of a field is valid, if it is validated at all."""
    is_checked = schema.get("validate_default", config.get("validate_default"))
    if not is_checked or "default" not in schema:
        return True
    try:
        SchemaValidator(schema, config).get_default_value()
    except SchemaError:
        return True
    except Exception:  # noqa: BLE001 - of validators that call functions
        return False
    return True


def _texts(found: Mapping[str, Any]) -> tuple[str, ...]:
    try:
        return examples(json.dumps(found))
    except (TypeError, ValueError):
        return ()


def _is_of_a_type(function: Any) -> bool:
    """Whether a function belongs to a type or an annotation, not to a field or a model."""
    if isinstance(function, type):
        return not issubclass(function, BaseModel)
    owner = getattr(function, "__self__", None)
    if owner is not None:
        cls = owner if isinstance(owner, type) else type(owner)
        return hasattr(cls, _HOOK) and not hasattr(cls, "__pydantic_decorators__")
    function = getattr(function, "func", function)  # of a partial
    module = str(getattr(function, "__module__", ""))
    return module.startswith("pydantic.") or _HOOK in getattr(function, "__qualname__", "")

"""Convert `response_format`, in the OpenAI format and similar ones, to grammars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from stars_engine.config.grammars import JsonGrammar, schema_of
from stars_engine.errors import ConfigError, Problem
from stars_engine.schema_formats.wrappings import read_schema, type_of_answer

_OWNER = "response_format"
_TELL_THE_TYPE = {"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "not", "if"}


def grammar_of_schema(
    schema: dict[str, Any], *, strict: bool | None = None, compact: bool = False
) -> JsonGrammar:
    """Return the grammar of a JSON schema.

    Args:
        schema: The schema.
        strict: If False, objects may have properties that the schema does not name.
        compact: Whether to omit whitespace between the parts.
    """
    if "properties" in schema and not schema.keys() & _TELL_THE_TYPE:
        schema = {"type": "object", **schema}  # in JSON Schema alone, a number satisfies it too
    return JsonGrammar(json_schema=schema, extra_properties=strict is False, compact=compact)


def describes(grammar: JsonGrammar | None) -> TypeGuard[JsonGrammar]:
    """Whether a grammar says more of an answer than that it is a JSON object."""
    return grammar is not None and grammar.json_schema.keys() != {"type"}


def grammar_of_response_format(wanted: Any) -> JsonGrammar | None:
    """Return the grammar of a `response_format`; None for text.

    Args:
        wanted: `{"type": "text"}`, `{"type": "json_object"}`, `{"type": "json_schema", ...}`, a
            JSON schema in any wrapping that `read_schema` supports, or a pydantic model.

    Raises:
        ConfigError: `wanted` is not a response format.
    """
    if isinstance(wanted, type) and hasattr(wanted, "model_json_schema"):
        return grammar_of_schema(schema_of(wanted))
    kind = type_of_answer(wanted)
    if kind is not None:
        return None if kind == "text" else JsonGrammar()
    if not isinstance(wanted, Mapping):
        allowed = "{'type': 'text'}, {'type': 'json_object'}, {'type': 'json_schema', "
        allowed += "'json_schema': {'schema': ...}}, a JSON schema, or a pydantic model"
        message = (
            f"invalid response format {wanted!r}; expected one of {allowed}. Hint: give the schema"
        )
        raise ConfigError("call", [Problem(_OWNER, message)])
    found = read_schema(wanted, owner=_OWNER)
    assert found.schema is not None
    return grammar_of_schema(found.schema, strict=found.strict)

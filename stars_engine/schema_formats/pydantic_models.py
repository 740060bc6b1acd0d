"""JSON schemas of pydantic models, including constraints that pydantic's own schemas omit.

Any JSON that satisfies the schema should validate: a number with a limited number of digits, a date
and time without a time zone, an integer key.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from stars_engine.schema_formats.library_types import (
    UNSUPPORTED,
    bounded_dates,
    bounded_times,
    has_bounds,
    replacement,
)

# The largest number of decimal places of a decimal number. `multipleOf` would not do: validators
# divide floats, which are not exact.
DECIMAL_PLACES = "x-decimal-places"

_BOUNDS = (
    ("ge", "minimum"),
    ("gt", "exclusiveMinimum"),
    ("le", "maximum"),
    ("lt", "exclusiveMaximum"),
)
_KEYS = {  # patterns for keys of objects, which are strings in JSON
    "integer": r"^(0|-?[1-9][0-9]{0,17})$",
    "number": r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?$",
    "boolean": "^(true|false)$",
}
_DATE = r"[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_WEB = {"http", "https"}
_LARGEST_SPAN = 86_400 * 999_999_999  # seconds of a `timedelta`


def schema_of_model(model: Any) -> dict[str, Any]:
    """Return the JSON schema of a pydantic model, from its own method if it overrides it."""
    method = getattr(model.model_json_schema, "__func__", None)
    if method is getattr(BaseModel.model_json_schema, "__func__", None):
        return dict(model.model_json_schema(schema_generator=ModelJsonSchema))
    return dict(model.model_json_schema())


class ModelJsonSchema(GenerateJsonSchema):
    """Generates JSON schemas for grammars."""

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        """Return the schema of a type; narrower than pydantic's if that allows invalid values."""
        found = replacement(schema)
        if found is None:
            found = super().generate_inner(schema)
        if found.keys() & {"gt", "ge", "lt", "le"}:  # constraints that pydantic only applies itself
            return {UNSUPPORTED: "a grammar cannot express the bounds of this type"}
        return found

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        """Return a schema that is refused by name, for a type that has no JSON form."""
        return {UNSUPPORTED: f"the type has no JSON form ({error_info})"}

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        """Return text; with bounds on the number of bytes, of ASCII."""
        found = super().bytes_schema(schema)
        if "min_length" in schema or "max_length" in schema:
            return {**found, "pattern": r"^[ -~]*$"}
        return found

    def date_schema(self, schema: core_schema.DateSchema) -> JsonSchemaValue:
        """Return a date within bounds."""
        found = super().date_schema(schema)
        return {**found, **bounded_dates(schema)} if has_bounds(schema) else found

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """Return a number with bounded digits; a string if a number cannot express the bound."""
        digits, decimals = schema.get("max_digits"), schema.get("decimal_places")
        if digits is not None and decimals is None:
            # A number schema cannot bound the total number of digits, so use a string.
            whole, cut = rf"[0-9]{{1,{digits}}}", rf"(?=[0-9.]{{3,{digits + 1}}}$)[0-9]+\.[0-9]+"
            return {"type": "string", "pattern": f"^-?({whole}|{cut})$"}
        found: JsonSchemaValue = {"type": "number"}
        for ours, theirs in (*_BOUNDS, ("multiple_of", "multipleOf")):
            if ours in schema:
                found[theirs] = float(schema[ours])  # type: ignore[literal-required]
        if decimals is None:
            return found
        found[DECIMAL_PLACES] = decimals
        if digits is None:
            return found
        largest = 10 ** max(digits - decimals, 0)
        bounds: JsonSchemaValue = {"exclusiveMinimum": -largest, "exclusiveMaximum": largest}
        if largest == 1:  # pydantic counts the 0 before the point
            bounds["not"] = {"const": 0}
        return {"type": "number", "allOf": [found, bounds]}

    def set_schema(self, schema: core_schema.SetSchema) -> JsonSchemaValue:
        """Return a list: what comes twice is once in a set."""
        return _without_unique(super().set_schema(schema), schema)

    def frozenset_schema(self, schema: core_schema.FrozenSetSchema) -> JsonSchemaValue:
        """Return a list: what comes twice is once in a set."""
        return _without_unique(super().frozenset_schema(schema), schema)

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """Return an object whose property names are valid keys."""
        found = super().dict_schema(schema)
        keys = self.generate_inner(schema["keys_schema"]).copy() if "keys_schema" in schema else {}
        if keys.get("type") in _KEYS and "propertyNames" not in found:
            found["propertyNames"] = {"pattern": _KEYS[keys["type"]]}
            if keys.keys() - {"type", "title", "description"}:  # a pattern cannot express bounds
                found["propertyNames"] = {"allOf": [found["propertyNames"], {"not": keys}]}
        return found

    def complex_schema(self, schema: core_schema.ComplexSchema) -> JsonSchemaValue:
        """Return a string such as "1.5-2j"."""
        return {"type": "string", "pattern": r"^-?[0-9]{1,9}(\.[0-9]{1,9})?[+-][0-9]{1,9}j$"}

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:
        """Return a duration; seconds are limited to Python's range."""
        found = super().timedelta_schema(schema)
        if has_bounds(schema):
            found = {"type": "number"} | {
                theirs: schema[ours].total_seconds()  # type: ignore[literal-required]
                for ours, theirs in _BOUNDS
                if ours in schema
            }
            return {"allOf": [found, {"minimum": -_LARGEST_SPAN, "maximum": _LARGEST_SPAN}]}
        if found.get("type") == "number":
            found = {**found, "minimum": -_LARGEST_SPAN, "maximum": _LARGEST_SPAN}
        return found

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        """Return a date and time, without a time zone if it must be naive."""
        found = super().datetime_schema(schema)
        if schema.get("tz_constraint") == "naive":
            found = {"type": "string", "pattern": f"^{_DATE}T{_CLOCK}$"}
        return {**found, **bounded_dates(schema)} if has_bounds(schema) else found

    def time_schema(self, schema: core_schema.TimeSchema) -> JsonSchemaValue:
        """Return a time, without a time zone if it must be naive."""
        if has_bounds(schema):
            return {"type": "string", "pattern": f"^{_CLOCK}$", **bounded_times(schema)}
        if schema.get("tz_constraint") == "naive":
            return {"type": "string", "pattern": f"^{_CLOCK}$"}
        return super().time_schema(schema)

    def url_schema(self, schema: core_schema.UrlSchema) -> JsonSchemaValue:
        """Return a URL of a scheme that is allowed."""
        return self._of_schemes(super().url_schema(schema), schema.get("allowed_schemes"))

    def multi_host_url_schema(self, schema: core_schema.MultiHostUrlSchema) -> JsonSchemaValue:
        """Return a URL of a scheme that is allowed."""
        found = super().multi_host_url_schema(schema)
        return self._of_schemes(found, schema.get("allowed_schemes") or ["https"])

    def _of_schemes(self, found: JsonSchemaValue, schemes: list[str] | None) -> JsonSchemaValue:
        if schemes is None or set(schemes) >= _WEB:
            return found
        inner = f"({'|'.join(map(re.escape, schemes))})"
        if set(schemes) & _WEB:
            return {**found, "pattern": f"^{inner}://"}
        plain = {key: value for key, value in found.items() if key != "format"}
        return {**plain, "pattern": rf"^{inner}://[a-z0-9]{{1,40}}(/[a-z0-9]{{1,40}})+$"}


def _without_unique(found: JsonSchemaValue, schema: Any) -> JsonSchemaValue:
    if schema.get("min_length", 0) <= 1:
        return {key: value for key, value in found.items() if key != "uniqueItems"}
    return found

"""JSON schemas of pydantic models, including constraints that pydantic's own schemas omit.

Any JSON that satisfies the schema should validate: a number with a limited number of digits, a date
and time without a time zone, an integer key.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticOmit, core_schema, to_json

from stars_engine.json_schema.keywords import DECIMAL_PLACES, UNSUPPORTED
from stars_engine.schema_formats.library_types import (
    HASHABLE,
    bounded_dates,
    bounded_times,
    has_bounds,
    pattern_of_predicate,
    replacement,
)
from stars_engine.schema_formats.validators import (
    accepts,
    has_own_validator,
    has_valid_default,
    needs_instance,
    rejected,
)

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
_CONSTRAINTS = {"gt", "ge", "lt", "le", "multiple_of"}
_MAX_PLACES = 9
_SIMPLE = ("str", "int", "float", "bool", "date", "datetime", "literal", "enum", "uuid")
_LARGEST_SPAN = 86_400 * 999_999_999  # seconds of a `timedelta`


def schema_of_model(model: Any) -> dict[str, Any]:
    """Return the JSON schema of a pydantic model, from its own method if it overrides it."""
    method = getattr(model.model_json_schema, "__func__", None)
    if method is getattr(BaseModel.model_json_schema, "__func__", None):
        return dict(model.model_json_schema(schema_generator=ModelJsonSchema))
    return dict(model.model_json_schema())


class ModelJsonSchema(GenerateJsonSchema):
    """Generates JSON schemas for grammars."""

    _depth = 0  # of functions that read Python objects instead of JSON

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        """Return the schema of a type; narrower than pydantic's if that allows invalid values."""
        if _is_nested_alias(schema.get("validation_alias")):
            if self.field_is_required(schema, total=True):
                return {UNSUPPORTED: "a grammar cannot express an alias that is a path"}
            raise PydanticOmit
        reads_python = schema["type"] in ("function-before", "function-wrap")
        self._depth += reads_python
        try:
            found = replacement(schema)
            if found is None:
                found = super().generate_inner(schema)
        finally:
            self._depth -= reads_python
        return self._narrowed(found, schema)

    def _narrowed(self, found: JsonSchemaValue, schema: Any) -> JsonSchemaValue:
        """Return a narrower schema if a validator rejects what a schema allows."""
        is_bounded = schema["type"] == "fraction" and schema.keys() & _CONSTRAINTS
        if is_bounded or found.keys() & _CONSTRAINTS:  # which pydantic only applies itself
            return {UNSUPPORTED: "a grammar cannot express the bounds of this type"}
        strict = bool(self._config.strict)
        if self._depth and needs_instance(schema, strict=strict):
            return {UNSUPPORTED: "behind a validator, this strict type takes only Python objects"}
        pattern = pattern_of_predicate(schema)
        if pattern is not None:
            found = {**found, "allOf": [{"pattern": pattern}, *found.get("allOf", ())]}
        if has_own_validator(schema):
            text = self._rejected(found, schema)
            if text is not None:
                return {UNSUPPORTED: f"its validator rejects {text[:60]}, which its schema allows"}
        return found

    def _rejected(self, found: JsonSchemaValue, schema: Any) -> str | None:
        return rejected(found, schema, self._core_config(), dict(self.definitions))

    def _core_config(self) -> Any:
        return self._config.core_config(None)

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Whether a field is required; without it, its default must be valid."""
        inner = field["schema"]
        if inner["type"] == "default" and not (
            inner.keys() & {"default", "default_factory"}
            and has_valid_default(inner, self._core_config())
        ):
            return True
        return super().field_is_required(field, total)

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        """Return a schema that is refused by name, for a type that has no JSON form."""
        return {UNSUPPORTED: f"the type has no JSON form ({error_info})"}

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        """Return text; without spaces at its ends if pydantic counts without them."""
        found = super().str_schema(schema)
        is_stripped = schema.get("strip_whitespace", self._config.str_strip_whitespace)
        if is_stripped and found.keys() & {"minLength", "pattern"}:
            ends = [{"pattern": r"^[^\s]"}, {"pattern": r"[^\s]$"}]
            if not found.get("minLength"):
                ends = [{"pattern": r"^([^\s]([\s\S]*[^\s])?)?$"}]
            found["allOf"] = ends
        return found

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        """Return the values that pydantic accepts as JSON."""
        return self._accepted(super().literal_schema(schema), schema)

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        """Return the values that pydantic accepts as JSON."""
        return self._accepted(super().enum_schema(schema), schema)

    def _accepted(self, found: JsonSchemaValue, schema: Any) -> JsonSchemaValue:
        values = found["enum"] if "enum" in found else [found["const"]]
        config = self._core_config()
        kept = [value for value in values if accepts(schema, config, to_json(value).decode())]
        if len(kept) == len(values):
            return found
        if not kept:
            return {UNSUPPORTED: f"no JSON value is valid for {values!r}"}
        return {key: part for key, part in found.items() if key != "type"} | {"enum": kept}

    def bytes_schema(self, schema: core_schema.BytesSchema) -> JsonSchemaValue:
        """Return text; with bounds on the number of bytes, of ASCII."""
        found = super().bytes_schema(schema)
        if self._config.val_json_bytes != "utf8" and not self._depth:
            return _encoded(schema, self._config.val_json_bytes)
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
            if any(ours in schema for ours, _ in (*_BOUNDS, ("multiple_of", ""))):
                counts = range(min(digits, _MAX_PLACES) + 1)
                return {
                    "anyOf": [self.decimal_schema({**schema, "decimal_places": n}) for n in counts]
                }
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
        return self._of_hashable(super().set_schema(schema), schema)

    def frozenset_schema(self, schema: core_schema.FrozenSetSchema) -> JsonSchemaValue:
        """Return a list: what comes twice is once in a set."""
        return self._of_hashable(super().frozenset_schema(schema), schema)

    def _of_hashable(self, found: JsonSchemaValue, schema: Any) -> JsonSchemaValue:
        items = schema.get("items_schema", {"type": "any"})
        if items["type"] == "any":
            found = {**found, "items": dict(HASHABLE)}
        one = {"type": "array", "items": found["items"], "minItems": 1, "maxItems": 2}
        bare = {"type": schema["type"], "items_schema": items}
        cls = items.get("cls")
        is_unhashable = isinstance(cls, type) and cls.__hash__ is None
        if is_unhashable or (items["type"] not in _SIMPLE and self._rejected(one, bare)):
            return {UNSUPPORTED: "a set needs values that Python can hash"}
        return _without_unique(found, schema)

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """Return an object whose property names are valid keys."""
        found = super().dict_schema(schema)
        keys = schema.get("keys_schema")
        if keys is None or "propertyNames" in found or "patternProperties" in found:
            return found
        names = _as_name(self.generate_inner(keys))
        if names is None:
            return {UNSUPPORTED: "the keys of an object are strings, which are invalid here"}
        return {**found, "propertyNames": names} if names else found

    def complex_schema(self, schema: core_schema.ComplexSchema) -> JsonSchemaValue:
        """Return a string such as "1.5-2j"."""
        return {"type": "string", "pattern": r"^-?[0-9]{1,9}(\.[0-9]{1,9})?[+-][0-9]{1,9}j$"}

    def timedelta_schema(self, schema: core_schema.TimedeltaSchema) -> JsonSchemaValue:
        """Return a duration; seconds are limited to Python's range."""
        found = super().timedelta_schema(schema)
        if "multiple_of" in schema:
            return {UNSUPPORTED: "a grammar cannot express multiples of a duration"}
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


def _is_nested_alias(alias: Any) -> bool:
    """Whether an alias has paths only, and none of them is a single name."""
    if not isinstance(alias, list):
        return False
    return not any(isinstance(path, list) and len(path) == 1 for path in alias)


def _as_name(keys: JsonSchemaValue) -> JsonSchemaValue | None:
    """Return the schema of property names from that of keys; None if no name is a valid key."""
    if "anyOf" in keys:
        names = [name for part in keys["anyOf"] if (name := _as_name(part)) is not None]
        if not names:
            return None
        return {"anyOf": names} if all(names) else {}
    kind = keys.get("type")
    if kind in _KEYS:
        pattern: JsonSchemaValue = {"pattern": _KEYS[kind]}
        # A pattern cannot express bounds.
        has_bounds = keys.keys() - {"type", "title", "description"}
        return {"allOf": [pattern, {"not": keys}]} if has_bounds else pattern
    if kind in ("null", "array", "object"):
        return None
    return {key: part for key, part in keys.items() if key not in ("type", "title", "description")}


def _encoded(schema: core_schema.BytesSchema, encoding: str) -> JsonSchemaValue:
    """Return bytes in base64 or hexadecimal digits, in base64 in groups of three if bounded."""
    least, most = schema.get("min_length", 0), schema.get("max_length")
    if encoding == "hex":
        counts = f"{{{least},{'' if most is None else most}}}"
        return {"type": "string", "pattern": f"^([0-9a-fA-F]{{2}}){counts}$"}
    if not least and most is None:
        return {"type": "string", "format": "base64url"}
    counts = f"{{{-(-least // 3)},{'' if most is None else most // 3}}}"
    return {"type": "string", "pattern": f"^([A-Za-z0-9_-]{{4}}){counts}$"}


def _without_unique(found: JsonSchemaValue, schema: Any) -> JsonSchemaValue:
    if schema.get("min_length", 0) <= 1:
        return {key: value for key, value in found.items() if key != "uniqueItems"}
    return found

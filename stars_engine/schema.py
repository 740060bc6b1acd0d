"""The frozen base class of config objects and results, with readable errors."""

from __future__ import annotations

import hashlib
import inspect
import math
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self
from weakref import ref

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from stars_engine.near_names import near_name
from stars_engine.problems import HINT, ConfigError, Problem
from stars_engine.redaction import (
    DIGESTS,
    MASK,
    is_secret_name,
    masked,
    redact,
    resembles_secret_name,
)

_BOUND_SIGNS = {Ge: ">=", Gt: ">", Le: "<=", Lt: "<"}
_hashes: dict[int, tuple[ref[Schema], str]] = {}  # content hashes by the ids of objects


class Schema(BaseModel):
    """A frozen, strict value object. Unknown fields and out-of-range values raise `ConfigError`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        # JSON has no infinities, so they are written as strings that pydantic reads back.
        ser_json_inf_nan="strings",
        protected_namespaces=(),
        hide_input_in_errors=True,  # inputs may contain secrets
    )

    # Hints for plausible field names for which the most similar field is the wrong one.
    hints: ClassVar[dict[str, str]] = {}

    def __init__(self, /, *unnamed: Any, **values: Any) -> None:
        if unnamed:
            raise TypeError(_explain_unnamed(type(self), unnamed[0]))
        for name, value in values.items():
            if isinstance(value, bool) and _is_number(type(self), name):
                values[name] = _NoNumber(value)
        with _as_config_error(type(self)):
            super().__init__(**values)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Validate like pydantic, but raise `ConfigError`."""
        with _as_config_error(cls):
            return super().model_validate(obj, **options)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """Validate like pydantic, but raise `ConfigError`."""
        with _as_config_error(cls):
            return super().model_validate_json(json_data, **options)

    if not TYPE_CHECKING:  # a type checker would take this as permission for any assignment

        def __setattr__(self, name: str, value: object) -> None:
            try:
                super().__setattr__(name, value)
            except ValidationError:
                title = type(self).__name__
                message = f"a {title} is frozen. Hint: create a copy with .replace({name}=...)"
                raise ConfigError(title, [Problem(name, message)]) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Append the descriptions of the fields to the docstring, for `help`."""
        super().__pydantic_init_subclass__(**options)
        lines = [
            f"    {name}: {field.description}; default: {field.get_default()!r}."
            if not field.is_required() and field.default_factory is None
            else f"    {name}: {field.description}."
            for name, field in cls.model_fields.items()
            if field.description
        ]
        if lines:
            about = inspect.cleandoc(vars(cls).get("__doc__") or cls.__name__)
            cls.__doc__ = "\n".join([about, "", "Attributes:", *lines])

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with some fields changed."""
        values = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**values, **changes})

    def __deepcopy__(self, memo: Any = None) -> Self:
        """Return the object itself, which is frozen and may hold a loaded model."""
        return self

    def content_hash(self) -> str:
        """Return 12 hexadecimal digits that change whenever a field changes.

        Functions are identified by name only. It is computed once, since the object is frozen.
        """
        key = id(self)
        known = _hashes.get(key)
        if known is not None and known[0]() is self:
            return known[1]
        values = self.model_dump_json(fallback=_name_of, context=DIGESTS)
        found = hashlib.sha256(values.encode()).hexdigest()[:12]
        _hashes[key] = ref(self, lambda _: _hashes.pop(key, None)), found
        return found


@contextmanager
def _as_config_error(cls: type[BaseModel]) -> Iterator[None]:
    """Raise `ConfigError` instead of pydantic's error, which shows its input."""
    try:
        yield
    except ValidationError as error:
        raise ConfigError(cls.__name__, list(_problems(cls, error))) from None


def not_nan(value: float | None, meaning: str) -> float | None:
    """Return a number if it is not nan.

    Raises:
        ValueError: It is nan, which cannot be compared.
    """
    if value is not None and math.isnan(value):
        raise ValueError(f"{meaning}; nan cannot be compared")
    return value


def _name_of(live: Any) -> str:
    """Return a name for a live object that is the same in every process."""
    named = live if hasattr(live, "__qualname__") else type(live)
    return f"{named.__module__}.{named.__qualname__}"


class _NoNumber:
    """A boolean given for a number. pydantic would read it as 0 or 1, and refuses this wrapper."""

    def __init__(self, value: bool) -> None:
        self._value = value

    def __repr__(self) -> str:
        return repr(self._value)


@cache
def _is_number(cls: type[BaseModel], name: str) -> bool:
    """Whether a field is a number and not also a boolean."""
    kinds = set(_flat_parts(cls.model_fields.get(name)))
    return bool(kinds & {int, float}) and bool not in kinds


def _explain_unnamed(cls: type[BaseModel], given: object) -> str:
    first = next(name for name in cls.model_fields if name != "kind")
    return (
        f"{cls.__name__} takes keyword arguments only. Hint: use {cls.__name__}({first}={given!r})"
    )


def _problems(cls: type[BaseModel], error: ValidationError) -> Iterator[Problem]:
    """Translate pydantic's errors: field, value, allowed range, hint.

    A field with several types fails once for each; only the first error is reported.
    """
    reported: set[str] = set()
    for item in error.errors(include_url=False):
        field = ".".join(str(part) for part in _without_tags(cls, item["loc"]))
        name = str(item["loc"][0]) if item["loc"] else ""
        nested = item.get("ctx", {}).get("error")
        if name in reported:
            continue
        reported.add(name)
        if isinstance(nested, ConfigError):
            yield from (problem.under(field) if field else problem for problem in nested.problems)
        else:
            said = _explain(cls, item, nested)
            if HINT not in said:
                said = f"{said.rstrip('. ')}. {_hint(name, cls.model_fields.get(name))}"
            yield Problem(field, redact(said))


def _without_tags(cls: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Drop the union tag that pydantic inserts after the name of a field with several kinds."""
    if len(loc) < 2 or loc[0] not in cls.model_fields or isinstance(loc[1], int):
        return loc
    parts = _union_parts(cls.model_fields[str(loc[0])].annotation)
    is_mapping = any(typing.get_origin(part) is dict for part in parts)
    return loc if is_mapping else (loc[0], *loc[2:])  # the key of a mapping is not a tag


def _explain(cls: type[BaseModel], item: Any, nested: Exception | None) -> str:
    name = str(item["loc"][0]) if item["loc"] else ""
    field = cls.model_fields.get(name)
    names = (str(part) for part in item["loc"] if part != "[key]")  # pydantic's mark of a key
    is_unknown = item["type"] == "extra_forbidden"
    hides = resembles_secret_name if is_unknown else is_secret_name
    given = MASK if any(map(hides, names)) else masked(item["input"])
    match item["type"]:
        case "extra_forbidden":
            return _explain_unknown(cls, name, _shorten(given))
        case "missing":
            return f"is required. {_describe(name, field)}"
        case "union_tag_invalid" | "union_tag_not_found":
            kinds = item["ctx"].get("expected_tags", "") or _kinds(field)
            kinds = kinds.replace("'", "")
            tag = item["ctx"].get("tag")
            said = (
                f"unknown kind {tag!r}" if tag is not None else f"{_shorten(given)} has no `kind`"
            )
            kind = kinds.partition(",")[0]
            hint = f"{HINT}set `kind`, for example to {kind!r}"
            return f"{said}; allowed kinds: {kinds}. {_describe(name, field)} {hint}"
        case "value_error":
            if not name:
                return f"{nested}"
            mark = ";" if str(nested).startswith("allowed:") else ":"
            return f"{_shorten(given)} is not allowed{mark} {nested}"
        case _:
            reason = _allowed(field) if field else ""
            reason = f"allowed: {reason}" if reason else item["msg"]
            said = f"{_shorten(given)} is not allowed; {reason.rstrip('. ')}."
            return f"{said} {_describe(name, field)}".strip()


def _explain_unknown(cls: type[BaseModel], name: str, given: str) -> str:
    if issubclass(cls, Schema) and name in cls.hints:
        return f"unknown field; {cls.hints[name]}"
    known = list(cls.model_fields)
    near = near_name(name, known)
    hint = f"did you mean `{near}`?" if near else "remove it, or use one of these"
    return f"unknown field with the value {given}; known fields: {', '.join(known)}. {HINT}{hint}"


def _describe(name: str, field: FieldInfo | None) -> str:
    if field is None or not field.description:
        return ""
    return f"{name}: {field.description.rstrip('.')}."


def _hint(name: str, field: FieldInfo | None) -> str:
    """Return how to give a valid value."""
    if field is None:
        return f"{HINT}remove or correct it"
    if field.examples:
        return f"{HINT}for example, {name}={field.examples[0]!r}"
    if not field.is_required() and field.default is not PydanticUndefined:
        return f"{HINT}leave it out for {name}={_shorten(field.default)}"
    return f"{HINT}give {_allowed(field) or name}"


def _allowed(field: FieldInfo) -> str:
    """Describe the allowed values, from the annotation and its bounds."""
    parts = _union_parts(field.annotation)
    return " or ".join(_type_in_words(part, field.metadata) for part in parts)


def _bounds(metadata: typing.Iterable[Any]) -> str:
    bounds = [
        f"{sign} {getattr(bound, kind.__name__.lower())}"
        for bound in metadata
        for kind, sign in _BOUND_SIGNS.items()
        if isinstance(bound, kind)
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def _union_parts(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _flat_parts(field: FieldInfo | None) -> list[Any]:
    """Return the types that a field may have, without annotations."""
    parts, flat = list(_union_parts(field.annotation)) if field else [], []
    while parts:
        part = parts.pop(0)
        if typing.get_origin(part) is typing.Annotated:
            parts += _union_parts(typing.get_args(part)[0])
        else:
            flat.append(part)
    return flat


def _type_in_words(annotation: Any, metadata: typing.Sequence[Any] = ()) -> str:
    arguments = typing.get_args(annotation)
    filled = any(isinstance(info, MinLen) and info.min_length > 0 for info in metadata)
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *infos = arguments
        own = [part for info in infos for part in getattr(info, "metadata", [info])]
        return " or ".join(_type_in_words(part, [*metadata, *own]) for part in _union_parts(inner))
    if typing.get_origin(annotation) is Literal:
        return " or ".join(repr(value) for value in arguments)
    if typing.get_origin(annotation) is tuple:  # of any length: (item, ...)
        kind = "a list with at least one item" if filled else "a list"
        return f"{kind}; each item: {_type_in_words(arguments[0])}"
    if typing.get_origin(annotation) is dict:
        key, value = (_type_in_words(part) for part in arguments)
        return f"a mapping from {key} to {value}"
    words = {
        type(None): "None",
        int: f"an integer{_bounds(metadata)}",
        float: f"a number{_bounds(metadata)}",
        str: "text that is not empty" if filled else "text",
        SecretStr: "text that is not empty" if filled else "text",
        bool: "true or false",
        Any: "anything",
    }
    return words.get(annotation, getattr(annotation, "__name__", ""))


def _kinds(field: FieldInfo | None) -> str:
    """List the kinds of a tagged union, including optional and annotated ones."""
    models = [part for part in _flat_parts(field) if hasattr(part, "model_fields")]
    return ", ".join(model.model_fields["kind"].default for model in models)


def _shorten(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} nested too deeply to show"
    return text if len(text) <= 80 else f"{text[:77]}..."

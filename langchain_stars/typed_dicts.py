"""Convert TypedDicts to pydantic models, so that recursive schemas are preserved."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, ForwardRef, Union, get_args, get_origin, get_type_hints

import annotated_types
import typing_extensions
from langchain_core.utils.function_calling import convert_to_openai_function
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict, is_typeddict

from stars_engine.config.grammars import schema_of

_MARKS = {
    getattr(module, name): name
    for module in (typing, typing_extensions)
    for name in ("Required", "NotRequired", "ReadOnly")
    if hasattr(module, name)
}


def typed_dict_schema(typed_dict: type) -> dict[str, Any]:
    """Return the JSON schema of a TypedDict.

    As in LangChain, `Annotated[int, ..., "description"]` and docstrings describe keys, and
    `Annotated[int, 5, "description"]` gives a key a default, which makes it optional. LangChain's
    own conversion does not support recursive types.

    Raises:
        pydantic.PydanticUserError: A key's type has no JSON schema.
    """
    found: dict[type, str] = {}
    _collect(typed_dict, found)
    models = {name: _model_of(cls, found) for cls, name in found.items()}
    for model in models.values():
        model.model_rebuild(_types_namespace=models)
    schema: dict[str, Any] = schema_of(models[found[typed_dict]])
    return schema


def _collect(value: Any, found: dict[type, str]) -> None:
    """Give a unique name to each TypedDict that a type refers to."""
    if is_typeddict(value) and value not in found:
        name, number = value.__name__, 1
        while name in found.values():
            number += 1
            name = f"{value.__name__}_{number}"
        found[value] = name
        for hint in get_type_hints(value).values():
            _collect(hint, found)
    if get_origin(value) is not typing.Literal:
        for part in get_args(value):
            _collect(part, found)


def _model_of(typed_dict: Any, names: dict[type, str]) -> type[BaseModel]:
    hints = get_type_hints(typed_dict, include_extras=True)
    about = _about(typed_dict, hints)
    described = about.get("parameters", {}).get("properties", {})
    fields: dict[str, Any] = {}
    for key, hint in hints.items():
        inner, metadata, marks = _unmarked(hint)
        options: dict[str, Any] = {}
        if text := described.get(key, {}).get("description"):
            options["description"] = text
        if metadata and not _is_of_pydantic(metadata[0]):
            default, metadata = metadata[0], metadata[2:]
            options |= {} if default is ... else {"default": default}
        # The class itself does not see marks in string annotations.
        optional = "NotRequired" in marks or key in typed_dict.__optional_keys__
        if "default" not in options and optional and "Required" not in marks:
            options["default_factory"] = dict  # makes the key optional; it is never called
        annotation = _replaced(inner, names)
        if metadata:
            annotation = Annotated[(annotation, *metadata)]
        fields[f"field_{len(fields)}"] = (annotation, Field(alias=key, **options))
    model: type[BaseModel] = create_model(names[typed_dict], **fields)
    model.__doc__ = about.get("description") or None
    return model


def _about(typed_dict: Any, hints: dict[str, Any]) -> dict[str, Any]:
    """Return what LangChain reads from docstrings and annotations, without types."""
    plain: dict[str, Any] = {}
    for key, hint in hints.items():
        metadata = _unmarked(hint)[1][:2]
        is_described = bool(metadata) and not _is_of_pydantic(metadata[0])
        plain[key] = Annotated[(str, *metadata)] if is_described else str
    copied: Any = TypedDict(typed_dict.__name__, plain)  # type: ignore[misc]
    copied.__doc__ = typed_dict.__doc__
    return convert_to_openai_function(copied)


def _unmarked(hint: Any) -> tuple[Any, tuple[Any, ...], set[str]]:
    """Return a type, its metadata, and the qualifiers of its key."""
    metadata: tuple[Any, ...] = ()
    marks: set[str] = set()
    while (origin := get_origin(hint)) is Annotated or origin in _MARKS:
        marks |= {_MARKS[origin]} if origin in _MARKS else set()
        hint, *more = get_args(hint)
        metadata = (*more, *metadata)
    return hint, metadata, marks


def _is_of_pydantic(metadata: Any) -> bool:
    own = (FieldInfo, annotated_types.BaseMetadata, annotated_types.GroupedMetadata)
    return isinstance(metadata, own) or type(metadata).__module__.startswith("pydantic")


def _replaced(hint: Any, names: dict[type, str]) -> Any:
    """Replace TypedDicts in a type with references to their models."""
    if is_typeddict(hint):
        return ForwardRef(names[hint])
    origin, arguments = get_origin(hint), get_args(hint)
    if not arguments or origin is typing.Literal:
        return hint
    if origin in _MARKS:
        return _replaced(arguments[0], names)
    if origin is Annotated:
        return Annotated[(_replaced(arguments[0], names), *arguments[1:])]
    parts = tuple(_replaced(part, names) for part in arguments)
    if origin in (Union, types.UnionType):
        return Union[parts]  # noqa: UP007 - the parts are dynamic
    return origin[parts]

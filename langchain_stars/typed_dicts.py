"""TypedDicts as pydantic models, so that their schemas keep what refers to itself."""

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

    `Annotated[int, ..., "what it is"]` and docstrings describe keys as LangChain has it;
    `Annotated[int, 5, "what it is"]` has a default, and so need not be written. LangChain's own
    conversion cuts what refers to itself.

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
    """Give each TypedDict that a type leads to a name of its own."""
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
        bare, metadata, marks = _unmarked(hint)
        told: dict[str, Any] = {}
        if text := described.get(key, {}).get("description"):
            told["description"] = text
        if metadata and not _is_of_pydantic(metadata[0]):
            default, metadata = metadata[0], metadata[2:]
            told |= {} if default is ... else {"default": default}
        # Marks in annotations that are text are seen here, and not by the class.
        optional = "NotRequired" in marks or key in typed_dict.__optional_keys__
        if "default" not in told and optional and "Required" not in marks:
            told["default_factory"] = dict  # never asked for: what may be left out has no default
        annotation = _replaced(bare, names)
        if metadata:
            annotation = Annotated[(annotation, *metadata)]
        fields[f"field_{len(fields)}"] = (annotation, Field(alias=key, **told))
    model: type[BaseModel] = create_model(names[typed_dict], **fields)
    model.__doc__ = about.get("description") or None
    return model


def _about(typed_dict: Any, hints: dict[str, Any]) -> dict[str, Any]:
    """Return what LangChain reads of docstrings and annotations, types left out of it."""
    plain: dict[str, Any] = {}
    for key, hint in hints.items():
        metadata = _unmarked(hint)[1][:2]
        is_told = bool(metadata) and not _is_of_pydantic(metadata[0])
        plain[key] = Annotated[(str, *metadata)] if is_told else str
    copied: Any = TypedDict(typed_dict.__name__, plain)  # type: ignore[misc]
    copied.__doc__ = typed_dict.__doc__
    return convert_to_openai_function(copied)


def _unmarked(hint: Any) -> tuple[Any, tuple[Any, ...], set[str]]:
    """Return a type, its metadata, and the marks of its key."""
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
    """Return a type with the names of models in the place of TypedDicts."""
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
        return Union[parts]  # noqa: UP007 - of parts that are only known here
    return origin[parts]

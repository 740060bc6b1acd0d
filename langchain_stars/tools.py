"""Convert LangChain tools for the engine, from the schemas of their sources.

LangChain's own conversion to the OpenAI format inlines references, and drops those of recursive
types, so that any value would be valid there.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, NewType, get_origin

from langchain_core.tools import BaseTool, Tool, create_schema_from_function
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from typing_extensions import TypeAliasType, is_typeddict

from langchain_stars.typed_dicts import typed_dict_schema
from stars_engine import PromptError
from stars_engine.config.grammars import schema_of
from stars_engine.schema_formats import wrappings
from stars_engine.schema_formats.listings import tool_items
from stars_engine.schema_formats.parts import referred, rooted, without_titles
from stars_engine.schema_formats.pydantic_models import ModelJsonSchema
from stars_engine.schema_formats.wrappings import NamedSchema


def read_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Return tools of any kind (functions, models, schemas, `BaseTool`) in the OpenAI format.

    A dictionary may describe several, such as the tools that an MCP server lists.

    Raises:
        PromptError: A tool has an unsupported type, or runs on its provider's servers.
        ConfigError: A dictionary is not a tool, or its schema is invalid.
    """
    return [found.as_tool() for tool in tool_items(tools) for found in _read(tool)]


def read_schema(schema: Any) -> NamedSchema:
    """Return the JSON schema of anything that LangChain accepts as a schema.

    Args:
        schema: A pydantic model (version 1 or 2), a TypedDict, an enum or another type, a JSON
            schema in any wrapping, a function or a `BaseTool`.

    Raises:
        ConfigError: A dictionary is not a JSON schema.
        PromptError: The schema has an unsupported type.
    """
    if isinstance(schema, Mapping):
        return wrappings.read_schema(schema)
    if is_plain_type(schema):
        whole = TypeAdapter(schema).json_schema(schema_generator=ModelJsonSchema)
        name = getattr(schema, "__name__", "answer")
        return NamedSchema(whole, name, rooted(whole).get("description", ""))
    if isinstance(schema, type) and not is_typeddict(schema) and _is_model(schema):
        whole = _of_model(schema)
        return NamedSchema(whole, name_of_model(schema), rooted(whole).get("description", ""))
    [found] = _read(schema)
    return found


def is_plain_type(schema: Any) -> bool:
    """Whether a schema is a type such as `int`, an enum or `list[int]`, and not that of an object.

    Classes with fields or arguments have names for their values, which the model should write.
    """
    if get_origin(schema) is not None or isinstance(schema, NewType | TypeAliasType):
        return True
    if not isinstance(schema, type) or is_typeddict(schema) or _is_model(schema):
        return False
    if is_dataclass(schema) or hasattr(schema, "_fields"):  # the latter has a named tuple
        return False
    try:
        TypeAdapter(schema).json_schema(schema_generator=ModelJsonSchema)
    except PydanticUserError:
        return False
    return True


def name_of_model(model: type) -> str:
    """Return the tool name of a pydantic model, as LangChain's parsers expect it."""
    if issubclass(model, BaseModel):
        return str(model.model_config.get("title") or model.__name__)
    return model.__name__


def other_names(tools: Sequence[Any]) -> dict[str, str]:
    """Return class names that also select a tool."""
    classes = (tool for tool in tools if isinstance(tool, type) and _is_model(tool))
    return {cls.__name__: name_of_model(cls) for cls in classes}


def _read(tool: Any) -> list[NamedSchema]:
    try:
        return _of_any(tool)
    except NameError as error:  # of an annotation in quotes
        name = getattr(tool, "__name__", type(tool).__name__)
        raise PromptError(
            f"the annotations of {name} cannot be resolved: {error}. Hint: define the types that "
            "they name in the module, not in a function"
        ) from error


def _of_any(tool: Any) -> list[NamedSchema]:
    if isinstance(tool, Mapping):
        return wrappings.read_tools(tool)
    if isinstance(tool, BaseTool):
        return [_of_base_tool(tool)]
    if is_typeddict(tool):
        return [_named(tool.__name__, typed_dict_schema(tool))]
    if isinstance(tool, type) and _is_model(tool):
        return [_named(name_of_model(tool), _of_model(tool))]
    if callable(tool) and hasattr(tool, "__name__") and _has_signature(tool):
        model = create_schema_from_function(
            tool.__name__,
            tool,
            filter_args=(),
            parse_docstring=True,
            error_on_invalid_docstring=False,
            include_injected=False,
        )
        return [_named(tool.__name__, _of_model(model), model.__doc__ or "")]
    raise PromptError(
        f"unsupported tool {str(tool)[:80]!r} of type {type(tool).__name__}. Hint: use a function, "
        "a pydantic model, a TypedDict, a dictionary with a schema, or a BaseTool"
    )


def _has_signature(function: Any) -> bool:
    try:
        inspect.signature(function)
    except (TypeError, ValueError):  # of a built-in type
        return False
    return True


def _named(name: str, schema: dict[str, Any], description: str | None = None) -> NamedSchema:
    schema = rooted(schema)
    about = schema.get("description", "") if description is None else description
    rest = {key: part for key, part in schema.items() if key != "description"}
    return NamedSchema(without_titles(rest), name, about)


def _of_base_tool(tool: BaseTool) -> NamedSchema:
    arguments = tool.args_schema
    if isinstance(arguments, dict):
        found = wrappings.read_schema(arguments, owner=f"tools.{tool.name}.args_schema")
        return NamedSchema(found.schema, tool.name, tool.description)
    if isinstance(tool, Tool) and arguments is None:  # takes one string, in LangChain's own form
        made = convert_to_openai_tool(tool)
        if "function" not in made:
            raise PromptError(
                f"the tool {tool.name!r} takes text without a schema, which only models of its "
                "provider support. Hint: use a function, or a tool with an args_schema"
            )
        return NamedSchema(made["function"]["parameters"], tool.name, tool.description)
    return _named(tool.name, _asked(tool), tool.description)


def _asked(tool: BaseTool) -> dict[str, Any]:
    """Return the schema of the arguments that a model writes, without injected arguments.

    The schema comes from the tool's own model, because LangChain's selection of fields drops
    aliases, discriminators and settings of the whole model.
    """
    source: Any = tool.get_input_schema()
    chosen: Any = tool.tool_call_schema
    fields = _fields(source)
    injected = {_key_of(source, name) for name in fields.keys() - _fields(chosen).keys()}
    try:
        schema = rooted(_of_model(source))
    except PydanticInvalidForJsonSchema:
        if not injected:
            raise
        return _of_model(chosen)  # injected arguments may have types without a JSON schema
    properties = schema.get("properties", {})
    kept = {name: part for name, part in properties.items() if name not in injected}
    required = [name for name in schema.get("required", ()) if name not in injected]
    schema = {**schema, "properties": kept, "required": required}
    return referred(schema if required else {k: v for k, v in schema.items() if k != "required"})


def _fields(model: Any) -> dict[str, Any]:
    fields: dict[str, Any] = (
        model.model_fields if hasattr(model, "model_json_schema") else model.__fields__
    )
    return fields


def _key_of(model: Any, name: str) -> str:
    """Return the JSON name of a field."""
    field = _fields(model)[name]
    alias = getattr(field, "validation_alias", None) or getattr(field, "alias", None)
    return alias if isinstance(alias, str) else name


def _is_model(value: type) -> bool:
    return hasattr(value, "model_json_schema") or (
        hasattr(value, "schema") and hasattr(value, "__fields__")
    )


def _of_model(model: Any) -> dict[str, Any]:
    """Return the schema of a pydantic model (version 1 or 2)."""
    is_new = hasattr(model, "model_json_schema")
    schema: dict[str, Any] = schema_of(model) if is_new else model.schema()
    return schema

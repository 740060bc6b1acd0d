"""Convert LlamaIndex tools for the engine, and make them callable with the model's arguments."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.program.function_program import get_function_tool
from llama_index.core.tools import (
    AsyncBaseTool,
    BaseTool,
    FunctionTool,
    ToolMetadata,
    ToolOutput,
)
from llama_index.core.tools.types import adapt_to_async_tool
from pydantic import BaseModel
from pydantic.errors import PydanticUserError

from stars_engine import PromptError
from stars_engine.config.grammars import schema_of
from stars_engine.schema_formats.listings import tool_items
from stars_engine.schema_formats.parts import rooted, without_titles
from stars_engine.schema_formats.wrappings import NamedSchema, read_tools


def read_tool_list(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Return tools in the OpenAI format, under the caller's names.

    Args:
        tools: LlamaIndex tools, pydantic models, or dictionaries in the format of any vendor; one
            may describe several, such as the tools that an MCP server lists.

    Raises:
        PromptError: A tool has an unsupported type, or runs on its provider's servers.
        ConfigError: A dictionary is not a tool, or its schema is invalid.
    """
    return [found.as_tool() for tool in tool_items(tools) for found in _read(tool)]


def parameters_of(metadata: ToolMetadata) -> dict[str, Any]:
    """Return the schema of a tool's arguments.

    LlamaIndex's own method keeps only some keys, which loses recursive models. If a subclass of
    `ToolMetadata` overrides that method, the override is used.
    """
    own = type(metadata).get_parameters_dict is not ToolMetadata.get_parameters_dict
    if own or metadata.fn_schema is None:
        parameters: dict[str, Any] = metadata.get_parameters_dict()
        return rooted(parameters)
    return _whole(metadata.fn_schema)


def callable_tools(tools: Sequence[BaseTool]) -> list[BaseTool]:
    """Return tools that LlamaIndex can call; it reads `properties` from their schema."""
    for tool in tools:
        _resolve_annotations(tool)
    return [
        tool if "properties" in tool.metadata.get_parameters_dict() else _ByName(tool)
        for tool in map(_from_json, tools)
    ]


def validated(model: type[BaseModel], arguments: Mapping[str, Any]) -> BaseModel:
    """Return an object from the arguments of a call.

    They are validated as JSON, because strict models accept no dates, bytes or tuples from Python's
    strings and lists.
    """
    return model.model_validate_json(json.dumps(arguments))


def _from_json(tool: BaseTool) -> BaseTool:
    """Return the tool with which LlamaIndex creates objects, but from JSON."""
    model = tool.metadata.fn_schema
    if not isinstance(tool, FunctionTool) or model is None:
        return tool
    if not tool.real_fn.__qualname__.startswith(get_function_tool.__name__):
        return tool

    def create(**arguments: Any) -> BaseModel:
        return validated(model, arguments)

    return FunctionTool.from_defaults(fn=create, tool_metadata=tool.metadata)


def _whole(model: type[BaseModel]) -> dict[str, Any]:
    schema = without_titles(rooted(schema_of(model)))
    return {key: part for key, part in schema.items() if key != "description"}


def _resolve_annotations(tool: BaseTool) -> None:
    """Resolve string annotations in the module where the function is defined."""
    model = tool.metadata.fn_schema
    if model is not None and not model.__pydantic_complete__ and isinstance(tool, FunctionTool):
        names = getattr(inspect.unwrap(tool.real_fn), "__globals__", {})
        try:
            model.model_rebuild(raise_errors=False, _types_namespace=names)
        except PydanticUserError as error:
            reason = str(error).split(". ", maxsplit=1)[0]
            raise PromptError(
                f"the arguments of the tool {tool.metadata.get_name()!r} have no JSON schema: "
                f"{reason}. Hint: annotate LlamaIndex's Context with the class, not in quotes or "
                "under `from __future__ import annotations`, or give fn_schema"
            ) from error


def _read(tool: Any) -> list[NamedSchema]:
    if isinstance(tool, BaseTool):
        _resolve_annotations(tool)
        metadata = tool.metadata
        described = metadata.description or ""
        return [NamedSchema(parameters_of(metadata), metadata.get_name(), described)]
    if isinstance(tool, type) and issubclass(tool, BaseModel):
        schema = rooted(schema_of(tool))
        name, about = schema.pop("title", tool.__name__), schema.pop("description", "")
        return [NamedSchema(schema, name, about)]
    if isinstance(tool, Mapping):
        return read_tools(tool)
    raise PromptError(
        f"unsupported tool {str(tool)[:80]!r} of type {type(tool).__name__}. Hint: use "
        "FunctionTool.from_defaults(...), "
        "a pydantic model, or a dictionary with a schema"
    )


class _Whole(ToolMetadata):
    """Metadata whose schema always has `properties`."""

    def get_parameters_dict(self) -> dict[str, Any]:
        """Return the schema of the arguments."""
        assert self.fn_schema is not None
        return {"properties": {}, **_whole(self.fn_schema)}


class _ByName(AsyncBaseTool):
    """A tool whose arguments are always passed by name."""

    def __init__(self, tool: BaseTool) -> None:
        self._tool = tool
        of = tool.metadata
        self._metadata = _Whole(of.description, of.name, of.fn_schema, of.return_direct)

    @property
    def metadata(self) -> ToolMetadata:
        return self._metadata

    def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
        return self._tool(**self._named(args), **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> ToolOutput:
        return await adapt_to_async_tool(self._tool).acall(**self._named(args), **kwargs)

    def _named(self, args: tuple[Any, ...]) -> dict[str, Any]:
        """Name an argument that LlamaIndex passes by position if it is the only one."""
        return dict(zip(self._metadata.get_parameters_dict()["properties"], args, strict=False))

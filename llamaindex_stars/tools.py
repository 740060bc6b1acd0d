"""LlamaIndex's tools as the engine's, and how they are called with what comes back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.tools import (
    AsyncBaseTool,
    BaseTool,
    FunctionTool,
    ToolMetadata,
    ToolOutput,
)
from llama_index.core.tools.types import adapt_to_async_tool
from pydantic import BaseModel

from stars_engine import PromptError
from stars_engine.config.grammars import schema_of
from stars_engine.schema_formats.parts import rooted
from stars_engine.schema_formats.wrappings import NamedSchema, read_tools


def read_tool_list(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Return tools in the OpenAI format, under the names that were given.

    Args:
        tools: Tools of LlamaIndex, pydantic models, or dictionaries in the format of any vendor.

    Raises:
        PromptError: It is none of these, or a tool that runs at its provider.
        ConfigError: A dictionary is no tool, or its schema is none.
    """
    return [found.as_tool() for tool in tools for found in _read(tool)]


def parameters_of(metadata: ToolMetadata) -> dict[str, Any]:
    """Return the schema of a tool's arguments.

    LlamaIndex's own takes a few keys of it, and so nothing of a model that refers to itself. Where
    a kind of metadata has a way of its own, that counts.
    """
    own = type(metadata).get_parameters_dict is not ToolMetadata.get_parameters_dict
    if own or metadata.fn_schema is None:
        parameters: dict[str, Any] = metadata.get_parameters_dict()
        return rooted(parameters)
    return _whole(metadata.fn_schema)


def callable_tools(tools: Sequence[BaseTool]) -> list[BaseTool]:
    """Return tools that LlamaIndex can call, which looks for `properties` in their schema."""
    for tool in tools:
        _resolve(tool)
    return [
        tool if "properties" in tool.metadata.get_parameters_dict() else _ByName(tool)
        for tool in tools
    ]


def _whole(model: type[BaseModel]) -> dict[str, Any]:
    schema = rooted(schema_of(model))
    return {key: part for key, part in schema.items() if key not in ("title", "description")}


def _resolve(tool: BaseTool) -> None:
    """Look up what annotations that are text refer to, where the function is defined."""
    model = tool.metadata.fn_schema
    if model is not None and not model.__pydantic_complete__ and isinstance(tool, FunctionTool):
        names = getattr(inspect.unwrap(tool.real_fn), "__globals__", {})
        model.model_rebuild(raise_errors=False, _types_namespace=names)


def _read(tool: Any) -> list[NamedSchema]:
    if isinstance(tool, BaseTool):
        _resolve(tool)
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
        f"a {type(tool).__name__} is no tool. Hint: FunctionTool.from_defaults(...), a pydantic "
        "model, or a dictionary with a schema"
    )


class _Whole(ToolMetadata):
    """Metadata with a schema that has `properties`."""

    def get_parameters_dict(self) -> dict[str, Any]:
        """Return the schema of the arguments."""
        assert self.fn_schema is not None
        return {"properties": {}, **_whole(self.fn_schema)}


class _ByName(AsyncBaseTool):
    """A tool whose arguments are always given by name, as its model has them."""

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
        """Return the argument that LlamaIndex gives without its name, where there is only one."""
        return dict(zip(self._metadata.get_parameters_dict()["properties"], args, strict=False))

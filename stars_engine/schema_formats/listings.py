"""Lists of tools, in the forms in which servers and vendors give several at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stars_engine.schema_formats.vendor_keys import ANSWER, LISTS, RESULT, present


def tool_items(tools: Any) -> list[Any]:
    """Return the items of a list of tools; one tool, or one listing of tools, is a list of one.

    Args:
        tools: A list, a dictionary, or an object of MCP's Python SDK.
    """
    is_one = isinstance(tools, Mapping) or _is_of_mcp(tools)
    items = [tools] if is_one else tools
    return [
        item.model_dump(mode="json", by_alias=True, exclude_none=True) if _is_of_mcp(item) else item
        for item in items
    ]


def lists_tools(value: Any) -> bool:
    """Whether a dictionary is a listing of tools: of MCP, or the declarations of Gemini."""
    while isinstance(value, Mapping) and RESULT in value and value.keys() <= ANSWER:
        value = value[RESULT]
    listed = present(value, LISTS)[:1] if isinstance(value, Mapping) else []
    return any(isinstance(value[key], list | tuple) for key in listed)


def _is_of_mcp(value: Any) -> bool:
    fields = getattr(type(value), "model_fields", {})
    return not isinstance(value, type) and not {"inputSchema", "tools"}.isdisjoint(fields)

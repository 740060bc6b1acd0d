"""Short values of schemas, to estimate the length of a tool call."""

from __future__ import annotations

from typing import Any

import pytest

from stars_engine.schema_formats.shortest import shortest_value


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}, {"a": ""}),
        (
            {
                "type": "object",
                "properties": {"a": {"$ref": "#/$defs/In"}, "b": {"type": "integer"}},
                "required": ["a"],
                "$defs": {"In": {"required": ["x"], "properties": {"x": {"const": "long text"}}}},
            },
            {"a": {"x": "long text"}},
        ),
        ({"type": "array", "minItems": 3, "items": {"enum": ["yes", "no"]}}, ["no"] * 3),
        ({"anyOf": [{"type": "string", "minLength": 9}, {"type": "null"}]}, None),
        ({"type": ["object", "string"], "minLength": 2}, {}),
        ({"required": ["a"]}, {"a": 0}),
        (True, 0),
        ({}, 0),
    ],
)
def test_shortest_values(schema: Any, value: Any) -> None:
    assert shortest_value(schema) == value


def test_mutual_recursion_ends() -> None:
    names = [f"N{index}" for index in range(40)]
    branches = [{"$ref": f"#/$defs/{name}"} for name in names]
    part = {"type": "object", "required": ["in"], "properties": {"in": {"anyOf": branches}}}
    schema = {"$ref": "#/$defs/N0", "$defs": dict.fromkeys(names, part)}
    assert "in" in shortest_value(schema)

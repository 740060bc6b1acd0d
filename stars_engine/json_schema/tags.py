"""Find the property that distinguishes the branches of a union."""

from __future__ import annotations

import json
from typing import Any

from stars_engine.json_schema.references import References


def tag_of(schema: dict[str, Any], branches: list[Any], references: References) -> str | None:
    """Return the name of a property that every branch must have, or None.

    This is the property that `discriminator` names, or else a property with different values in
    each branch. Without it, the branch of a value could be ambiguous.
    """
    named = schema.get("discriminator")
    if isinstance(named, dict) and isinstance(named.get("propertyName"), str):
        return str(named["propertyName"])
    found = [_tags(branch, references, depth=0) for branch in branches]
    for name in found[0] if found else ():
        sets = [tags.get(name, frozenset()) for tags in found]
        if all(sets) and sum(map(len, sets)) == len(frozenset().union(*sets)):
            return name
    return None


def _tags(branch: Any, references: References, depth: int) -> dict[str, frozenset[str]]:
    """Return the properties of a branch with a fixed set of values, and these values."""
    branch = _target(branch, references)
    if depth > 8:
        return {}
    for keyword in ("oneOf", "anyOf"):
        if isinstance(branch.get(keyword), list) and branch[keyword]:
            parts = [_tags(part, references, depth + 1) for part in branch[keyword]]
            shared = [name for name in parts[0] if all(name in part for part in parts)]
            return {name: frozenset().union(*(part[name] for part in parts)) for name in shared}
    found = {}
    properties = branch.get("properties")
    for name, inner in properties.items() if isinstance(properties, dict) else ():
        schema = _target(inner, references)
        if "const" in schema:
            found[name] = frozenset([json.dumps(schema["const"])])
        elif isinstance(schema.get("enum"), list):
            found[name] = frozenset(map(json.dumps, schema["enum"]))
    return found


def _target(schema: Any, references: References) -> dict[str, Any]:
    """Return a schema, or its target if it is only a reference."""
    for _ in range(8):
        if not isinstance(schema, dict):
            return {}
        if not isinstance(schema.get("$ref"), str) or "properties" in schema:
            return schema
        try:
            schema = references.find(schema, schema["$ref"])
        except LookupError:
            return {}
    return {}

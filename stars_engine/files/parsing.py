"""Parse YAML and JSON, without repeated keys and without aliases that expand to huge values."""

from __future__ import annotations

import json
from typing import Any

import yaml

_MAX_VALUES = 1_000_000  # in a file, with its aliases expanded


def parse_yaml(text: str) -> Any:
    """Return the values of a YAML document.

    Raises:
        yaml.YAMLError: It is invalid, or repeats a key in one mapping.
        ValueError: Its aliases stand for too many values.
        RecursionError: It is nested too deeply, or within itself.
    """
    return yaml.load(text, Loader=_Loader)


def parse_json(text: str) -> Any:
    """Return the values of a JSON document.

    Raises:
        ValueError: It is invalid, or repeats a key in one object.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unrepeated)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice in one object")
        found[key] = value
    return found


class _Loader(yaml.SafeLoader):
    """A safe loader that checks a document before it makes values."""

    def get_single_node(self) -> yaml.Node | None:
        root: yaml.Node | None = super().get_single_node()
        if root is not None:
            _num_values(root, {})
        return root


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values in a node, with its aliases expanded.

    Args:
        node: The node.
        known: The results for other nodes by their ids; 0 for nodes around this one.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise RecursionError
        return known[id(node)]
    known[id(node)] = 0
    number = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        number += sum(_num_values(part, known) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        number += sum(_num_values(part, known) for part in node.value)
    if number > _MAX_VALUES:
        raise ValueError(f"its aliases stand for more than {_MAX_VALUES:,} values")
    known[id(node)] = number
    return number


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a key that occurs twice; the second would silently replace the first."""
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if (key.tag, key.value) in seen:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key.value!r} occurs twice in one mapping",
                problem_mark=key.start_mark,
            )
        seen.add((key.tag, key.value))

"""JSON Schema: grammars enforce what they support, and refuse the rest by name."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from stars_engine import ConfigError, JsonGrammar
from stars_engine.json_schema import read_schema
from tests.support.grammars import accepts, held, holds, is_of, refused

OBJECT = {"type": "object"}


# --- unions with tags ---


def branch(tag: str, name: str = "kind", **properties: Any) -> dict[str, Any]:
    required = [key for key in properties if key != "note"]
    tagged = {name: {"const": tag, "default": tag, "type": "string"}, **properties}
    return {**OBJECT, "properties": tagged, "required": required}


DISCRIMINATOR = {"discriminator": {"propertyName": "kind"}}


@pytest.mark.parametrize("extra", [DISCRIMINATOR, {}])
@pytest.mark.parametrize("keyword", ["oneOf", "anyOf"])
def test_tags_with_defaults_are_required(keyword: str, extra: dict[str, Any]) -> None:
    union = {keyword: [branch("a", x={"type": "integer"}), branch("b", note={"const": 1})], **extra}
    ours = '{"kind":"a","x":1}', '{"kind":"b"}', '{"kind":"b","note":1}'
    no_tags = ("{}", '{"x":1}', '{"note":1}', '{"kind":"a"}', '{"kind":"b","x":1}')
    holds(union, *ours, invalid=no_tags)
    array = {"type": "array", "items": union, "minItems": 1}
    holds(array, f"[{ours[0]},{ours[1]}]", invalid=("[{}]",))
    within = {**OBJECT, "properties": {"u": {"$ref": "#/$defs/u"}}, "$defs": {"u": union}}
    holds(within, f'{{"u":{ours[0]}}}', invalid=('{"u":{}}',))


def test_nested_tags_and_tags_behind_references() -> None:
    inner = {"oneOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/c"}], **DISCRIMINATOR}
    mapping = {"propertyName": "kind", "mapping": {"a": "#/$defs/a", "b": "#/$defs/b"}}
    schema = {
        "oneOf": [{"$ref": "#/$defs/a"}, inner],
        "discriminator": mapping,
        "$defs": {
            "a": branch("a", kids={"type": "array", "items": {"$ref": "#"}}),
            "b": branch("b"),
            "c": {**OBJECT, "properties": {"kind": {"enum": ["c", "C"]}}},
        },
    }
    text = '{"kind":"a","kids":[{"kind":"C"},{"kind":"b"}]}'
    holds(schema, text, invalid=("{}", '{"kind":"a","kids":[{}]}'))


@pytest.mark.parametrize(
    "branches",
    [
        [{"type": "integer"}, {"type": "string"}, {"type": "null"}],
        [{"const": "a"}, {"enum": ["b", 1]}],
        [{"minimum": 3, "type": "number"}, {"exclusiveMaximum": 3, "type": "number"}],
        [{**OBJECT, "required": ["a"]}, {**OBJECT, "properties": {"a": False}}],
        [{"type": "array", "maxItems": 1}, {"type": "array", "minItems": 2}],
        [{"type": "boolean", "const": True}, {"const": False}],
    ],
)
def test_disjoint_branches_are_enforced(branches: list[Any]) -> None:
    holds({"oneOf": branches})


@pytest.mark.parametrize(
    "branches",
    [
        [{"type": "integer"}, {"type": "number"}],
        [{"type": "string", "format": "date"}, {"type": "string", "format": "time"}],
        [{**OBJECT, "properties": {"a": {}}}, {**OBJECT, "properties": {"b": {}}}],
        [branch("a"), branch("a")],
        [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/x"}],
    ],
)
def test_branches_that_overlap_are_refused(branches: list[Any]) -> None:
    schema = {"oneOf": branches, "$defs": {"x": {"type": "null"}}}
    refused(schema, "`oneOf` at #: branches 0 and 1 may have common values")


def wants(*names: str) -> dict[str, Any]:
    return {"required": list(names)}


INTEGERS = {name: {"type": "integer"} for name in "abc"}
EXCLUSIVE: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({**OBJECT, "properties": INTEGERS, "oneOf": [wants("a"), wants("b")]}, ['{"a":1}', '{"b":1,"c":2}'], ['{"a":1,"b":2}', "{}"]),
    (
        {**OBJECT, "properties": INTEGERS, "oneOf": [wants("a"), wants("b"), wants("c")], "additionalProperties": False},
        ['{"b":1}'],
        ['{"a":1,"c":2}'],
    ),
    (
        {
            "oneOf": [
                {**OBJECT, "properties": {"page": {"type": "string"}}, **wants("page"), "additionalProperties": True},
                {**OBJECT, "properties": {"type": {"const": "base"}, "base": {"type": "string"}}, **wants("base"), "additionalProperties": True},
                {**OBJECT, "properties": {"type": {"const": "whole"}}, **wants("type"), "additionalProperties": True},
            ]
        },
        ['{"page":"x"}', '{"type":"base","base":"x"}', '{"type":"whole"}'],
        ['{"page":"x","base":"y"}', '{"page":"x","type":"whole"}'],
    ),
    (
        {
            "$defs": {"one": {**OBJECT, "properties": INTEGERS, **wants("a")}, "two": {**OBJECT, "properties": INTEGERS, **wants("b")}},
            "oneOf": [{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/two"}],
        },
        ['{"a":1}', '{"b":1}'],
        ['{"a":1,"b":1}'],
    ),
    ({"oneOf": [{"type": "string", "maxLength": 5}, {"type": "string", "minLength": 3}]}, ['"ab"', '"abcdef"'], ['"abc"']),
    ({"oneOf": [{"type": "number", "maximum": 5}, {"type": "number", "minimum": 3}]}, ["2", "6"], ["3", "4.5", "5"]),
    ({"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}, ['"a"', '"c"'], ['"b"']),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "valid", "invalid"), EXCLUSIVE)
def test_values_of_two_branches_are_excluded(
    schema: dict[str, Any], valid: list[str], invalid: list[str]
) -> None:
    holds(schema, *valid, invalid=tuple(invalid))


@pytest.mark.parametrize(
    "schema",
    [
        # Without common values, a branch would have none.
        {"oneOf": [{"type": "null"}, {"format": "date"}, {"format": "time"}]},
        {"oneOf": [{"type": "null"}, *({**OBJECT, "properties": {n: {"type": "string"}}} for n in "ab")]},
        # What a branch evaluates is not known.
        {**OBJECT, "oneOf": [{"properties": INTEGERS, **wants("a")}, {"properties": INTEGERS, **wants("b")}], "unevaluatedProperties": False},
        {"oneOf": [{"type": "string"}, {"minimum": 3}, {"type": "integer"}]},
    ],
)  # fmt: skip
def test_branches_that_cannot_exclude_each_other_are_refused(schema: dict[str, Any]) -> None:
    refused(schema, r"`oneOf` at #: branches \d and \d may have common values")


@pytest.mark.parametrize("draft", ["04", "06", "07", "2019-09"])
def test_an_id_beside_a_reference_counts_from_draft_2019_on(draft: str) -> None:
    uri = f"http://json-schema.org/draft-{draft}/schema#"
    key = "id" if draft == "04" else "$id"
    schema = {
        "$schema": uri if draft[0] == "0" else f"https://json-schema.org/draft/{draft}/schema",
        key: "http://localhost/base/",
        "definitions": {
            "elsewhere": {key: "http://localhost/other/x", "type": "string"},
            "here": {key: "x", "type": "boolean"},
        },
        "allOf": [{key: "http://localhost/other/", "$ref": "x"}],
    }
    state = held(schema, compact=True)
    assert state is not None
    assert accepts(state, "true") == (draft[0] == "0")
    assert accepts(state, '"a"') == (draft[0] != "0")


# --- dead ends ---

PATTERNED = {
    **OBJECT,
    "properties": {"a1": {"type": "integer"}, "a2": {"type": "integer"}},
    "additionalProperties": False,
    "patternProperties": {"^a[12]$": {"maximum": 9}},
}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        (PATTERNED, ['{"a1":1}', '{"a1":1,"a2":2}', "{}"], ['{"a1":10}', '{"a3":1}']),
        # No name is left for others.
        ({**OBJECT, "patternProperties": {"": {"type": "null"}}}, ['{"x":null}'], ['{"x":1}']),
        ({**OBJECT, "patternProperties": {"^x": {}, "^[^x]|^$": {}}}, ['{"x":1,"y":2}'], []),
        # Patterns that meet: a name may match both.
        (
            {
                **OBJECT,
                "patternProperties": {"^a": {"type": "integer"}, "z$": {"minimum": 5}},
                "additionalProperties": False,
            },
            ['{"a":1,"az":5,"z":6}'],
            ['{"az":4}', '{"b":1}'],
        ),
        (
            {**OBJECT, "patternProperties": {"^a$": {"type": "integer"}, "a": False}},
            [],
            ['{"a":1}'],
        ),
        # What holds itself without an end is left out, where it may be.
        (
            {
                **OBJECT,
                "properties": {"n": {"type": "integer"}, "me": {"$ref": "#/$defs/endless"}},
                "$defs": {
                    "endless": {
                        **OBJECT,
                        "properties": {"me": {"$ref": "#/$defs/endless"}},
                        "required": ["me"],
                    }
                },
            },
            ['{"n":1}', "{}"],
            ['{"n":1,"me":{}}'],
        ),
        ({"type": "array", "prefixItems": [{}, False, {}]}, ["[1]", "[]"], ["[1,2]"]),
        ({"type": "array", "items": {"type": "string", "pattern": "a^"}}, ["[]"], ['["a"]']),
        ({"anyOf": [{"type": "integer", "minimum": 3, "maximum": 2}, {"const": 1}]}, ["1"], ["2"]),
        ({"type": ["integer", "null"], "multipleOf": 7, "minimum": 1, "maximum": 6}, ["null"], []),
        (
            {**OBJECT, "properties": {"a": {}, "b": {}}, "minProperties": 1, "maxProperties": 1},
            ['{"a":1}', '{"b":1}'],
            ["{}", '{"a":1,"b":1}'],
        ),
    ],
)
def test_no_text_is_a_dead_end(schema: Any, valid: list[str], invalid: list[str]) -> None:
    holds(schema, *valid, invalid=tuple(invalid))


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        ({"not": {}}, "`not` at #"),
        ({**OBJECT, "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "infinitely deep"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "no value is possible at #"),
        ({"type": "string", "pattern": "a^"}, "no value is possible at #"),
        ({**OBJECT, "properties": {"a": False}, "required": ["a"]}, "possible at #/a"),
        ({"type": "array", "items": {"not": {}}, "minItems": 1}, "possible at #"),
        ({**OBJECT, "required": ["a", "b"], "maxProperties": 1}, "no number of properties"),
        (
            {**OBJECT, "properties": {"a": {}, "b": {}}, "minProperties": 2, "maxProperties": 1},
            "no number of properties",
        ),
        ({"enum": []}, "`enum` at #"),
        ({"$ref": "#"}, "no value is possible at #"),
        ({**OBJECT, "additionalProperties": False, "minProperties": 1}, "no number of properties"),
    ],
)
def test_schemas_that_nothing_satisfies_are_refused(schema: Any, match: str) -> None:
    refused(schema, f"no value satisfies the schema: .*{match}")


def test_objects_with_patterns_are_closed() -> None:
    schema = {**OBJECT, "patternProperties": {"^x_": {"type": "integer"}}}
    for extra in (False, True):
        grammar = JsonGrammar(json_schema=schema, compact=True, extra_properties=extra)
        assert is_of(grammar, '{"x_a":1}')
        assert is_of(grammar, '{"y":1}') == extra
    named = {**schema, "properties": {"a": {"const": 1}}, "required": ["b"]}
    holds(named, '{"a":1,"b":[],"x_1":2}', invalid=('{"a":1}', '{"a":1,"b":2,"c":3}'))


# --- references ---

TREE = {
    "$ref": "#/$defs/Tree",
    "$defs": {
        "Tree": {
            **OBJECT,
            "properties": {
                "name": {"const": "a"},
                "kids": {"type": "array", "items": {"$ref": "#/$defs/Tree"}, "default": []},
            },
            "required": ["name"],
        }
    },
}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        (TREE, '{"name":"a","kids":[{"name":"a","kids":[]}]}', '{"name":"a","kids":[1.2]}'),
        ({**OBJECT, "properties": {"a": {"$ref": "#"}}}, '{"a":{"a":{}}}', '{"a":1}'),
        (
            {
                "$ref": "#n",
                "$defs": {"x": {"$anchor": "n", "type": ["array"], "items": {"$ref": "#n"}}},
            },
            "[[],[[]]]",
            "[1]",
        ),
        (
            {"$ref": "#/$defs/a~1b~0c%25", "$defs": {"a/b~c%": {"const": 3}}},
            "3",
            "4",
        ),
        (
            {
                "$id": "https://x.test/s",
                "$ref": "https://x.test/s#/$defs/e",
                "$defs": {"e": {"const": 1}},
            },
            "1",
            "2",
        ),
        (
            {
                "$id": "https://x.test/s",
                "$ref": "item",
                "$defs": {"i": {"$id": "item", "$ref": "#/$defs/e", "$defs": {"e": {"const": 1}}}},
            },
            "1",
            "2",
        ),
        (
            {
                "$ref": "#/$defs/even",
                "$defs": {
                    "even": {
                        "anyOf": [{"const": 0}, {"type": "array", "items": {"$ref": "#/$defs/odd"}}]
                    },
                    "odd": {
                        **OBJECT,
                        "properties": {"e": {"$ref": "#/$defs/even"}},
                        "required": ["e"],
                    },
                },
            },
            '[{"e":0},{"e":[{"e":0}]}]',
            "[0]",
        ),
        (  # beside other keywords
            {**TREE, "properties": {"kids": {"maxItems": 1, "items": {"required": ["kids"]}}}},
            '{"name":"a","kids":[{"name":"a","kids":[]}]}',
            '{"name":"a","kids":[{"name":"a"}]}',
        ),
        (  # two trees at once
            {
                "allOf": [{"$ref": "#/$defs/l"}, {"$ref": "#/$defs/r"}],
                "$defs": {
                    "l": {
                        **OBJECT,
                        "properties": {"l": {"$ref": "#/$defs/l"}, "n": {"minimum": 0}},
                    },
                    "r": {
                        **OBJECT,
                        "properties": {"l": {"$ref": "#/$defs/r"}, "n": {"type": "integer"}},
                        "required": ["n"],
                        "additionalProperties": False,
                    },
                },
            },
            '{"l":{"n":3},"n":1}',
            '{"l":{"n":-3},"n":1}',
        ),
        ({"$dynamicRef": "#n", "$defs": {"x": {"$dynamicAnchor": "n", "const": 1}}}, "1", "2"),
        ({"definitions": {"a": {"const": 1}}, "$ref": "#/definitions/a"}, "1", "2"),
    ],
)
def test_references(schema: dict[str, Any], valid: str, invalid: str) -> None:
    holds(schema, valid, invalid=(invalid,))


@pytest.mark.parametrize(
    "reference", ["#/$defs/none", "#none", "other.json", "https://x.test/s", "#/$defs/a/const"]
)
def test_unresolvable_references_are_refused(reference: str) -> None:
    schema = {"properties": {"a": {"$ref": reference}}, "$defs": {"a": {"const": "x"}}}
    refused(schema, f"`\\$ref` at #/properties/a: '{re.escape(reference)}' ")


def test_long_chains_of_references_do_not_crash() -> None:
    names = [f"d{index}" for index in range(4000)]
    chain = {
        name: {**OBJECT, "properties": {"a": {"$ref": f"#/$defs/{following}"}}}
        for name, following in pairwise(names)
    }
    refused({"$ref": "#/$defs/d0", "$defs": {**chain, names[-1]: {}}}, r"`\$ref`.* too deeply")
    nested: dict[str, Any] = {}
    for _ in range(60):
        nested = {**OBJECT, "properties": {"a": nested}}
    assert held(nested) is not None
    for _ in range(5000):
        nested = {**OBJECT, "properties": {"a": nested}}
    with pytest.raises(ConfigError, match=r"json_schema: .* nested more than 200 levels deep"):
        JsonGrammar(json_schema=nested)


# --- every keyword ---

A, B = {"properties": {"a": {}, "b": {}, "c": {}}, "type": "object"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": ["null", "boolean"]}, ["null", "true"], ["1"]),
        ({"minItems": 1, "maxItems": 2, "type": "array", "items": B}, ["[1,2]"], ["[]", "[1,2,3]"]),
        ({"type": "array", "prefixItems": [B, {}], "items": False}, ["[1]", "[1,2]"], ["[1,2,3]"]),
        ({"type": "array", "prefixItems": [B], "unevaluatedItems": False}, ["[1]"], ["[1,2]"]),
        ({"type": "array", "uniqueItems": True, "maxItems": 1}, ["[1]", "[]"], ["[1,1]"]),
        ({"type": "array", "uniqueItems": False, "items": B}, ["[1,1]"], []),
        ({"type": "array", "contains": {}, "items": B}, ["[1]"], ["[]"]),
        ({"type": "array", "contains": B, "minContains": 0}, ["[]"], []),
        ({**A, "propertyNames": {"enum": ["a", "b"]}}, ['{"a":1}'], ['{"c":1}']),
        ({**OBJECT, "propertyNames": {"enum": ["p", "q"]}, "additionalProperties": B}, ['{"p":1,"q":2}'], ['{"r":1}', '{"p":"x"}']),
        ({**OBJECT, "propertyNames": {"maxLength": 2}, "additionalProperties": B}, ['{"pq":1}'], ['{"pqr":1}']),
        ({**OBJECT, "propertyNames": {"format": "date"}, "additionalProperties": B}, ['{"2024-01-01":1}'], ['{"x":1}']),
        ({**A, "dependentRequired": {"a": ["b"]}}, ['{"a":1,"b":2}', '{"b":1}', "{}"], ['{"a":1}']),
        ({**A, "dependentSchemas": {"a": {"required": ["c"]}}}, ['{"a":1,"c":1}'], ['{"a":1}']),
        ({**A, "dependencies": {"a": ["b"], "c": {"required": ["b"]}}}, ['{"b":1}'], ['{"c":1}']),
        ({**A, "minProperties": 2}, ['{"a":1,"c":1}'], ['{"a":1}']),
        ({**A, "maxProperties": 1}, ['{"a":1}', "{}"], ['{"a":1,"b":2}']),
        ({**A, "unevaluatedProperties": False}, ['{"a":1}'], ['{"d":1}']),
        ({"allOf": [A, {"properties": {"d": B}}], "unevaluatedProperties": False}, ['{"a":1,"d":2}'], ['{"e":1}']),
        ({"not": {"type": ["object", "array", "string"]}}, ["1", "null"], ['""', "{}"]),
        ({"enum": [1, 2, "a"], "not": {"enum": [2]}}, ["1", '"a"'], ["2"]),
        ({**A, "not": {"required": ["a"]}}, ['{"b":1}'], ['{"a":1}']),
        ({"type": "integer", "not": {"minimum": 5}}, ["4"], ["5"]),
        ({"properties": {"k": {"enum": ["x", "y"]}, "v": {}}, "required": ["k"], "type": "object", "if": {"properties": {"k": {"const": "x"}}}, "then": {"required": ["v"]}, "else": {"properties": {"v": False}}}, ['{"k":"x","v":1}', '{"k":"y"}'], ['{"k":"x"}', '{"k":"y","v":1}']),
        ({"if": {}, "then": {"const": 1}}, ["1"], ["2"]),
        ({"then": {"const": 1}, "type": "integer"}, ["2"], []),
        ({"minimum": 3, "exclusiveMinimum": True, "type": "integer"}, ["4"], ["3"]),
        ({"type": "object", "required": ["x"], "properties": {}}, ['{"x":[1]}'], ["{}"]),
        ({"title": "T", "description": "d", "default": 1, "examples": [], "deprecated": True, "readOnly": True, "x-any": {"not": {}}, "nullable": True, "type": "null"}, ["null"], ["1"]),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "$comment": "c", "type": "null"}, ["null"], []),
    ],
)  # fmt: skip
def test_supported_keywords(schema: Any, valid: list[str], invalid: list[str]) -> None:
    holds(schema, *valid, invalid=tuple(invalid))


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {"const": 1}}, "contains"),
        ({"type": "array", "contains": {"const": 1}, "maxContains": 2}, "contains"),
        ({"not": {"items": {"const": 1}}}, "not"),
        ({"not": {"multipleOf": 2}}, "not"),
        ({"if": {"items": {"const": 1}}, "then": {"minItems": 2}}, "if"),
        ({"$ref": "#/$defs/a", "unevaluatedProperties": False, "$defs": {"a": A}}, "unevaluatedProperties"),
        ({"anyOf": [{"prefixItems": [B]}, {}], "unevaluatedItems": False}, "unevaluatedItems"),
        ({"type": "string", "contentMediaType": "application/json", "contentSchema": B}, "contentSchema"),
        ({"type": "text"}, "type"),
        ({"type": 3}, "type"),
        ({"minLength": -1}, "minLength"),
        ({"maxItems": "2"}, "maxItems"),
        ({"minimum": "2"}, "minimum"),
        ({"required": "a"}, "required"),
        ({"properties": []}, "properties"),
        ({"properties": {"a": 3}}, "schema"),
        ({"anyOf": {}}, "anyOf"),
        ({"enum": 3}, "enum"),
        ({"divisibleBy": 3}, "divisibleBy"),
        ({"$recursiveRef": "#", "$recursiveAnchor": True}, "$recursiveRef"),
        ({"dependentRequired": []}, "dependentRequired"),
    ],
)  # fmt: skip
def test_unsupported_keywords(schema: dict[str, Any], keyword: str) -> None:
    refused(schema, f"`{re.escape(keyword)}` at #")
    [unsupported, *_] = read_schema(schema).unsupported
    assert unsupported.keyword == keyword
    inner = {**OBJECT, "properties": {"x/y": schema}, "$defs": schema.get("$defs", {})}
    if "$recursiveRef" not in schema:
        [unsupported, *_] = read_schema(inner).unsupported
        assert unsupported.path.startswith("#/properties/x~1y")
        assert unsupported.reason


def test_items_of_earlier_schema_drafts() -> None:
    state = held({"type": "array", "items": [B], "additionalItems": False}, compact=True)
    assert state is not None
    assert accepts(state, "[1]")
    assert not accepts(state, "[1,2]")
    assert not accepts(state, '["a"]')


def test_indistinguishable_names_are_not_counted() -> None:
    refused({**OBJECT, "minProperties": 2}, "`minProperties`")
    holds({**OBJECT, "minProperties": 1, "maxProperties": 2}, '{"x":1}', invalid=("{}",))


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"^(a|b)\1$", "a back-reference in"),
        (r"^(?P<x>a)(?P=x)$", "a back-reference in"),
        (r"^(?=(a))b\1$", "a back-reference in"),
        (r"x(\w+) \1", "a back-reference in"),
        (r"^(a)?(?(1)b|c)$", "a conditional group in"),
        (r"^a*+b$", "a possessive repetition in"),
        (r"^(?>ab|a)c$", "an atomic group in"),
        (r"^x(?<!y)$", "look-behind in"),
    ],
)
def test_patterns_that_no_grammar_expresses_are_named(pattern: str, reason: str) -> None:
    for schema in ({"type": "string", "pattern": pattern}, {"not": {"pattern": pattern}}):
        [unsupported, *_] = read_schema(schema).unsupported
        assert unsupported.reason == f"{reason} {pattern!r}"


def test_unsupported_values_are_left_out_of_the_grammar() -> None:
    schema = {**OBJECT, "properties": {"a": {"type": "array", "uniqueItems": True, "items": B}}}
    found = read_schema(schema)
    assert [str(unsupported) for unsupported in found.unsupported] == [
        "`uniqueItems` at #/properties/a: a grammar cannot compare items"
    ]
    assert found.root

"""Numbers, strings, formats and enums of grammars, against what Python reads."""

from __future__ import annotations

import json
import math
import random
import re
from typing import Any

import pytest

from stars_engine import ChoiceGrammar
from stars_engine.json_schema.compiling import json_rules
from tests.support.grammars import accepts, byte_grammars, check, draw, held, holds, refused, texts
from tests.support.marks import slow_but_each

OBJECT = {"type": "object"}


# --- numbers ---

BOUNDS = [0, 1, -1, 2.5, 9.99, 10, 100, 0.3, 1e-3, -7, -0.1, 1203, 0.1 + 0.2, 1e15, 123456789.125]


def test_numbers_without_bounds_are_finite() -> None:
    for schema in ({"type": "number"}, {"type": "integer"}, {"type": "number", "minimum": 1}, {}):
        state = held(schema)
        assert state is not None
        for text in (
            "1e400",
            "-1e400",
            "1e308",
            "9" * 310,
            "9" * 1000,
            "1e99999",
            "1" * 201 + "e99",
        ):
            if accepts(state, text):
                assert math.isfinite(float(json.loads(text))), text
        for text in ("12", "1" + "0" * 100):
            assert accepts(state, text), text
        rng = random.Random(0)
        for _ in range(50):
            text = draw(state, rng) or "0"
            for number in re.findall(r"-?\d[\d.eE+-]*", re.sub(r'"(\\.|[^"])*"', "", text)):
                assert math.isfinite(float(json.loads(number)))
    number = held({"type": "number"})
    assert number is not None
    for text in ("6.02e23", "1e300", "-1.5E-20", "0.1", "-0.0", "1e307"):
        assert accepts(number, text), text


@pytest.mark.parametrize("kind", ["integer", "number"])
@pytest.mark.parametrize("low", slow_but_each(2, [None, *BOUNDS[:12]]))
def test_numbers_between_bounds(kind: str, low: float | None) -> None:
    """Against plain comparisons, of numbers as Python reads them."""
    rng = random.Random(str(low))
    for high in (None, *BOUNDS):
        names = (
            rng.choice(["minimum", "exclusiveMinimum"]),
            rng.choice(["maximum", "exclusiveMaximum"]),
        )
        given = {
            name: bound for name, bound in zip(names, (low, high), strict=True) if bound is not None
        }
        schema = {"type": kind, **given}
        state = held(schema)
        candidates = {str(value) for value in BOUNDS if "e" not in str(value)}
        for bound in (low, high):
            if bound is not None:
                candidates |= {f"{bound + step:.4f}" for step in (-1, -0.01, 0, 0.01, 1)}
                candidates |= {str(math.floor(bound) + step) for step in (-1, 0, 1, 2)}
        if kind == "integer":
            candidates = {text for text in candidates if "." not in text}
        num_valid = 0
        for text in candidates - {"-0", "-0.0000"}:
            value = json.loads(text)
            valid = (
                value >= given.get("minimum", -math.inf)
                and value <= given.get("maximum", math.inf)
                and value > given.get("exclusiveMinimum", -math.inf)
                and value < given.get("exclusiveMaximum", math.inf)
            )
            num_valid += valid
            assert state is not None or not valid, (schema, text)
            assert state is None or accepts(state, text) == valid, (schema, text)
        for text in texts(state, 4) if state is not None else ():
            check(schema, text)


@pytest.mark.parametrize(
    "value", [2**53 + 1, 2**63, 2**64 + 1, 10**30 + 7, 1e30, 0.1, -1.5e-7, -0.0, 3]
)
def test_constants_are_written_exactly(value: float) -> None:
    holds({"const": value}, json.dumps(value), invalid=(str(value) + "1",))
    holds({"enum": [value, "x"]}, json.dumps(value), '"x"')


def test_bounds_beyond_floats() -> None:
    holds({"type": "integer", "minimum": 2**63, "maximum": 2**63 + 5}, str(2**63 + 5))
    holds({"type": "integer", "exclusiveMinimum": 2**53}, str(2**53 + 1), invalid=(str(2**53),))
    holds({"type": "number", "maximum": 1e300}, "9" * 300, invalid=("2" + "0" * 300,))


@pytest.mark.parametrize(
    "keyword", ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]
)
@pytest.mark.parametrize("kind", ["integer", "number"])
def test_integers_beyond_all_floats_are_refused_by_name(keyword: str, kind: str) -> None:
    for value in (10**309, -(10**400)):
        refused({"type": kind, keyword: value}, f"`{keyword}`.*1[0-9]+ bits is beyond all floats")


@pytest.mark.parametrize("count", [10**9 + 1, 2**32, 2**53 - 1, 2**63 - 1, 2**64, 10**400])
def test_counts_beyond_every_answer(count: int) -> None:
    items = {"type": "array", "items": {"const": 1}}
    holds({**items, "maxItems": count}, "[1,1]", "[]", invalid=("[2]",))
    holds({**items, "minItems": 1, "maxItems": count}, "[1]", invalid=("[]",))
    holds({"type": "object", "maxProperties": count}, "{}", '{"a":1}')
    refused({**items, "minItems": count}, "`minItems`.*above")
    refused({"type": "object", "minProperties": count}, "`minProperties`.*above")


def test_multiples() -> None:
    holds({"type": "integer", "multipleOf": 7, "minimum": -20}, "14", "-14", "0", invalid=("15",))
    # Validators divide floats: 0.07 / 0.01 is 7.000000000000001.
    cents = {"type": "number", "multipleOf": 0.01, "minimum": 0}
    holds(cents, "0.08", "12.5", "98765.25", invalid=("0.075", "0.07"))
    holds(
        {"allOf": [{"multipleOf": 4}, {"multipleOf": 6}], "type": "integer"}, "12", invalid=("4",)
    )
    holds({"type": "integer", "multipleOf": 0.5}, "3", invalid=("1.5",))
    holds({"type": "integer", "multipleOf": 100_000, "minimum": 0, "maximum": 500_000}, "300000")
    refused({"type": "integer", "multipleOf": 123_457}, "`multipleOf`")


@pytest.mark.parametrize("divisor", [0.1, 0.2, 0.3, 0.05, 0.01, 0.15, 0.001, 2.5, 12.34, 1.1, 0.7])
def test_multiples_of_decimals(divisor: float) -> None:
    """They pass the test of validators, which divide floats: without bounds, and within them."""
    bounded = {"type": "number", "multipleOf": divisor, "minimum": -3, "maximum": 50 * divisor}
    holds(bounded, "0", str(divisor))
    holds({"multipleOf": divisor, "allOf": [{"multipleOf": 0.25}], **bounded}, "0")
    if divisor in (1.1, 0.7):  # 7 / 0.7 is 10.000000000000002, and no bound says where that ends
        for kind in ("number", "integer"):
            refused({"type": kind, "multipleOf": divisor}, f"few multiples of {divisor} are exact")
    else:
        holds({"type": "number", "multipleOf": divisor}, "0", str(divisor), f"{1000 * divisor:g}")
        holds({"type": "integer", "multipleOf": divisor, "minimum": 10_000}, invalid=("10000.5",))


def test_multiples_that_are_listed() -> None:
    listed = {"enum": [0.1, 0.2, 0.3, 0.4], "multipleOf": 0.1}
    holds(listed, "0.1", "0.2", "0.4", invalid=("0.3",))
    refused({"const": 0.3, "multipleOf": 0.1}, "no value satisfies")
    refused({"type": "number", "multipleOf": 0.1, "minimum": 0.25, "maximum": 0.35}, "no value")
    # What validators may accept overlaps, for `oneOf`.
    refused({"oneOf": [{"const": 0.3}, {"type": "number", "multipleOf": 0.1}]}, "`oneOf`")


# --- strings ---


@pytest.mark.parametrize(
    ("pattern", "valid", "invalid"),
    [
        ("^a+$", ["a", "aaa"], ["", "b", "ab"]),
        ("b", ["b", "abc"], ["", "a"]),
        ("^a|b$", ["ax", "xb", "a"], ["xa", "bx"]),
        ("^(a|b)$", ["a", "b"], ["ab"]),
        (r"^(?=.*\d)[a-z\d]{2,4}$", ["a1", "1abc"], ["ab", "1", "1abcd"]),
        (r"^(?!foo|bar$)\w+$", ["f", "barx"], ["foo", "foox", "bar"]),
        (r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", ["1.5", "-007"], ["", "+", "."]),
        (r"^\D$", ["a", "é", '"', "\\"], ["1", "٣", "ab"]),
        (r"^[^\w]$", ["-", "…"], ["a", "é", "_"]),
        (r"^\S+$", ["aé漢"], [" ", "a\u00a0b", "a\u2003"]),
        (r"^\s$", [" ", "\t"], ["a"]),
        (r"^.$", ["a", "é", "😀"], ["\n", ""]),
        (r"(?s)^.$", ["\n", "\r"], ["ab"]),
        (r"(?i)^ab[^c]$", ["AB!", "aBd"], ["abC", "abc"]),
        (r"^[\"\\/\x00-\x1f]$", ['"', "\\", "/", "\n", "\x01"], ["a"]),
        (r"^(a?)(b{2,3}|c*?)$", ["abb", "acc", ""], ["b"]),
        (r"^x{0}y$", ["y"], ["xy"]),
        (r"\A\d\Z", ["1"], ["12"]),
        ("", ["", "a"], []),
        ("^$", [""], ["a"]),
        ("(^|,)a(,|$)", ["a", "x,a,y"], ["ba"]),
        ("^/api/v[0-9]+/", ["/api/v1/x"], ["api/v1/"]),
    ],
)
def test_patterns(pattern: str, valid: list[str], invalid: list[str]) -> None:
    schema = {"type": "string", "pattern": pattern}
    written = [json.dumps(text, ensure_ascii=False) for text in valid]
    avoided = [json.dumps(text, ensure_ascii=False) for text in invalid]
    holds(schema, *written, invalid=tuple(avoided))
    state = held({"type": "string", "not": {"pattern": pattern}})
    for text in texts(state, 20) if state is not None else ():
        assert re.search(pattern, json.loads(text)) is None


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"\bword", r"`\\b`"),
        (r"(a)\1", "a back-reference"),
        (r"^(a)\1$", "a back-reference"),
        ("(a)?(?(1)b|c)", "a conditional group"),
        ("(?<=a)b", "look-behind"),
        ("(", "'\\('"),
        ("[[:alpha:]]", "'\\[\\[:alpha:"),
        ("(?m)^a$", "'\\(\\?m\\)"),
        (r"\p{L}", "'"),
        ("(^a)*", "`\\^`"),
    ],
)
def test_patterns_without_a_grammar_are_refused(pattern: str, reason: str) -> None:
    refused({"properties": {"a": {"pattern": pattern}}}, f"`pattern` at #/properties/a: {reason}")


def test_lengths_count_characters() -> None:
    schema = {"type": "string", "minLength": 2, "maxLength": 3}
    holds(schema, '"ab"', '"é漢😀"', r'"\n\"\\"', r'"\u0001a"', invalid=('"a"', '"abcd"', r'"\n"'))
    holds({"type": "string", "maxLength": 10**12}, '"a"')
    both = {"type": "string", "pattern": "^a|b$", "minLength": 2, "maxLength": 2}
    holds(both, '"ax"', '"xb"', invalid=('"a"', '"axx"'))


def test_keys_have_one_spelling() -> None:
    schema = {**OBJECT, "properties": {"a": {"const": 1}, "\n\x01": {}}, "additionalProperties": {}}
    more = (
        r'{"\u0061":2}',
        r'{"\u000a\u0001":2,"\n\u0001":1}',
        '{"a":1,"a":2}',
        r'{"\n\u0001":1,"\n\u0001":2}',
    )
    holds(schema, r'{"a":1,"\n\u0001":2,"b":3}', invalid=more)


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [
        (
            "date",
            ["2024-02-29", "1999-12-31"],
            ["2023-02-29", "0000-01-01", "2024-13-01", "2024-04-31"],
        ),
        ("date", ["2000-02-29"], ["1900-02-29", "2100-02-29"]),
        ("time", ["12:30:00Z", "23:59:59.5+02:00"], ["12:30:60Z", "24:00:00Z"]),
        ("date-time", ["2024-02-29T12:00:00Z"], ["2024-02-30T12:00:00Z", "2024-02-29T12:00:60Z"]),
        ("duration", ["P1DT2H", "P3W", "PT5M"], ["P", "PT", "1D"]),
        (
            "uuid",
            ["12345678-1234-4234-8234-123456789abc", "00000000-0000-0000-0000-000000000000"],
            ["12345678", "12345678123442348234123456789abc"],
        ),
        (
            "uuid4",
            ["12345678-1234-4234-8234-123456789abc"],
            ["12345678-1234-1234-8234-123456789abc"],
        ),
        ("ipv4", ["127.0.0.1"], ["256.1.1.1", "01.1.1.1"]),
        ("ipv6", ["::1", "1:2:3:4:5:6:7:8", "::"], ["1::2::3", "1:2"]),
        ("email", ["ann@example.com", "ann.b.c@example.com"], ["ann", "ann@", "ann..b@a.bc"]),
        ("hostname", ["localhost", "a.b.c.d.e.example.com", "my-host"], ["", "a..b", "-a"]),
        (
            "uri",
            [
                "https://a.bc/x?y#z",
                "http://localhost:8000/v1",
                "http://my-host",
                "http://a.b.c.d.ef/",
            ],
            ["a.b", "https:// ", "http://xn--a", "http://:80"],
        ),
        (
            "regex",
            ["", r"^\d+(\.\d{2})?$", "a+|b*?", r"(?:[a-z0-9_.]+\.)+[^/\]]{2,}", "((a|b){0,3}c)?"],
            ["(", "a**", "[a", "a{2", "*a", "^*"],
        ),
        (
            "uri-reference",
            ["/a/b", "", "a?b=c#d", "https://a.bc/x"],
            ["\\\\host", "#a\\b", "a b", ":"],
        ),
        ("iri-reference", ["../a/"], ["\\\\host"]),
        ("uri-template", ["/a/{b}{?c,d*}", "x{+y}", ""], ["{", "{a", "}"]),
        ("json-pointer", ["", "/a~0/b~1", "/"], ["a", "/~", "/a~2"]),
        ("relative-json-pointer", ["0", "1/a", "2#"], ["", "/a", "-1/a", "01", "0##"]),
        ("path", ["a/b", "C:\\x", ""], []),
        ("binary", ["abc"], []),
        ("color", ["anything"], []),
    ],
)
def test_formats(name: str, valid: list[str], invalid: list[str]) -> None:
    written = [json.dumps(text) for text in valid]
    holds({"type": "string", "format": name}, *written, invalid=tuple(map(json.dumps, invalid)))


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        ({"exclusiveMinimum": 0, "maximum": 1e-300}, "`minimum` or `maximum` at #/a/items: "),
        ({"multipleOf": 1.3e-9}, "`multipleOf` at #/a/items: "),
        ({"minProperties": 3}, "`minProperties` at #/a/items: "),
        (
            {"patternProperties": {f"^{letter}": {} for letter in "abcdefg"}},
            "more than 5 patternProperties at #/a/items",
        ),
    ],
)
def test_what_is_too_complex_is_named_with_its_place(schema: dict[str, Any], match: str) -> None:
    refused({"properties": {"a": {"type": "array", "items": schema}}}, match)


def test_encoded_content() -> None:
    schema = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}
    holds(schema, '"YWI="', '""', invalid=('"a%b="', '"abc"'))
    holds({"type": "string", "contentEncoding": "quoted-printable"}, '"a%b="')


# --- choices ---


@pytest.mark.parametrize("count", [2_000, 20_000])
def test_many_choices(count: int) -> None:
    choices = tuple(f"choice {index}" for index in range(count))
    grammar = ChoiceGrammar(choices=choices)
    state = byte_grammars().start(grammar)
    assert accepts(state, choices[-1])
    assert accepts(state, choices[1])  # which begins others
    assert not accepts(state, "choice")
    assert not accepts(state, f"choice {count}")
    drawn = texts(state, 20)
    assert len(drawn) == 20
    assert set(drawn) <= set(choices)


@pytest.mark.slow
def test_many_names_and_values() -> None:
    properties = {f"key {index}": {"type": "integer"} for index in range(3_000)}
    schema = {**OBJECT, "properties": properties}
    state = held(schema, compact=True)
    assert state is not None
    assert accepts(state, '{"key 7":1,"key 2999":2}')
    assert not accepts(state, '{"key 7":1,"key 3":2}')
    values = held({"enum": [f"value {index}" for index in range(20_000)]})
    assert values is not None
    assert accepts(values, '"value 19999"')


@pytest.mark.parametrize(
    "bounds",
    [
        {"exclusiveMinimum": 0, "exclusiveMaximum": 5e-324},
        {"minimum": 1e-300, "maximum": 1e-299},
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1e-30},
        {"minimum": 1e300},
        {"maximum": -(10.0**70)},
    ],
)
def test_limits_without_a_grammar_are_refused_by_name(bounds: dict[str, float]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "number", **bounds}}}
    with pytest.raises(ValueError, match=r"`minimum` or `maximum`.*1e-20 to 1e\+60"):
        json_rules("start", json.dumps(schema))

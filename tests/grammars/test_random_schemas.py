"""Random JSON schemas and the public suite: grammars write valid values, or refuse the schema."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.grammars import accepts, check, held, texts
from tests.support.marks import slow_but_first
from tests.support.random_schemas import LEAVES, random_document
from tests.support.shared_files import SHARED

FEWEST = 120  # documents with every kind of schema
NUM_SCHEMAS = int(os.environ.get("STARS_RANDOM_SCHEMAS", FEWEST))
BATCH = 40


def document(seed: int) -> dict[str, Any]:
    return random_document(random.Random(seed), unsupported=True)


def test_few_documents_have_every_kind_of_schema() -> None:
    text = json.dumps([document(seed) for seed in range(FEWEST)])
    for leaf in LEAVES:
        assert json.dumps(leaf)[1:-1] in text
    for keyword in (
        *("prefixItems", "anyOf", "oneOf", "discriminator", "patternProperties", "propertyNames"),
        *("allOf", "unevaluatedProperties", "if", "dependentRequired", "minProperties", "$ref"),
        *("additionalProperties", "uniqueItems", "not"),
    ):
        assert f'"{keyword}": ' in text, keyword


@pytest.mark.parametrize("first", slow_but_first(range(0, NUM_SCHEMAS, BATCH)))
def test_random_schemas_are_enforced_or_refused(first: int) -> None:
    num_held = num_texts = 0
    for seed in range(first, first + BATCH):
        schema = document(seed)
        state = held(schema, compact=bool(seed % 2), extra_properties=seed % 3 == 0)
        if state is None:
            continue
        num_held += 1
        for text in texts(state, 4, seed):
            num_texts += 1
            check(schema, text)
    assert num_held >= 0.6 * BATCH
    assert num_texts >= 3 * num_held


def suite() -> Iterator[tuple[str, Any]]:
    """Yield the cases of the required tests of draft 2020-12 of the JSON Schema Test Suite."""
    folder = Path(os.environ.get("JSON_SCHEMA_TEST_SUITE", SHARED / "data/json-schema-test-suite"))
    for file in sorted((folder / "tests/draft2020-12").glob("*.json")):
        for case in json.loads(file.read_text(encoding="utf-8")):
            yield f"{file.stem}: {case['description']}", case


def test_the_public_suite() -> None:
    """Neither a text drawn, nor one that the suite has as invalid, is one of a grammar wrongly."""
    cases = list(suite())
    if not cases:
        pytest.skip(
            "set JSON_SCHEMA_TEST_SUITE to a clone of json-schema-org/JSON-Schema-Test-Suite"
        )
    num_held = num_accepted = num_valid = 0
    for name, case in cases:
        schema = case["schema"]
        if isinstance(schema, bool):
            schema = {} if schema else {"not": {}}
        state = held(schema, compact=True, extra_properties=True)
        if state is None:
            continue
        num_held += 1
        for example in case["tests"]:
            text = json.dumps(example["data"], separators=(",", ":"), ensure_ascii=False)
            is_accepted = accepts(state, text)
            assert example["valid"] or not is_accepted, (name, text)
            num_valid += example["valid"]
            num_accepted += is_accepted
        for text in texts(state, 20):
            check(schema, text)
    assert num_held >= 0.7 * len(cases)
    assert num_accepted >= 0.9 * num_valid  # others: another order of properties, `1.0` for 1

"""Random requests that follow, or break, the description of the API: no 500, no hang."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    status_code_conformance,
)

from tests.support.servers import RunningServer
from tests.support.valid_requests import corrected

# Of requests with settings that have no effect.
pytestmark = pytest.mark.filterwarnings("ignore::stars_engine.StarsWarning")

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    negative_data_rejection,
]


OPTIONS: dict[str, Any] = {
    "database": None,
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}
VALID, INVALID = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.fixture(scope="module")
def operations(server: RunningServer) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return [found.ok() for found in schema.get_all_operations()]


def fuzz(operation: Any, mode: GenerationMode, max_examples: int) -> None:
    @settings(max_examples=max_examples, **OPTIONS)
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if mode is VALID:
            case.body = corrected(operation.path, case.body)
        elif isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "chat"  # a random name is never that of a model
        case.call_and_validate(checks=CHECKS, timeout=60)

    check()


@pytest.mark.slow
def test_every_endpoint_is_described(operations: list[Any]) -> None:
    assert {operation.path for operation in operations} >= {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/score",
        "/v1/models",
        "/metrics",
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", [VALID, INVALID])
def test_a_few_requests(operations: list[Any], mode: GenerationMode) -> None:
    for operation in operations:
        if mode is VALID or operation.body:
            fuzz(operation, mode, 2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [VALID, INVALID])
def test_many_requests(operations: list[Any], mode: GenerationMode) -> None:
    for operation in operations:
        if mode is VALID or operation.body:
            fuzz(operation, mode, 150 if operation.body else 5)

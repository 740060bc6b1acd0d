"""The verdicts of a soak."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.soak_report import print_verdicts, verdicts


def samples(rss: list[float], threads: int = 10, descriptors: int = 20) -> list[Any]:
    return [SimpleNamespace(rss=each, threads=threads, descriptors=descriptors) for each in rss]


def judged(given: list[Any], **other: Any) -> dict[str, Any]:
    return verdicts(given, **{"num_different": 0, "left": [], "latencies_s": {}, **other})


def test_only_the_second_half_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    found = judged(samples([1.0, 9.0, 100.0, 101.0]), latencies_s={"chat": [0.5]})
    assert found["ok"]
    assert found["latency_s"] == {"chat": {"calls": 1, "p50": 0.5, "p95": 0.5}}
    print_verdicts(found)
    assert "memory: ok" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "other", "name"),
    [
        (samples([1.0, 1.0, 100.0, 120.0]), {}, "memory"),
        (samples([1.0] * 4), {"num_different": 1}, "texts"),
        (samples([1.0] * 4), {"left": ["stars-engine"]}, "threads"),
        ([*samples([1.0] * 3), *samples([1.0], threads=40)], {}, "threads"),
        ([*samples([1.0] * 3), *samples([1.0], descriptors=99)], {}, "descriptors"),
    ],
)
def test_each_measure_can_fail(
    given: list[Any],
    other: dict[str, Any],
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = judged(given, **other)
    assert not found["ok"]
    assert not found[name]["ok"]
    print_verdicts(found)
    assert f"{name}: WRONG" in capsys.readouterr().out

"""The verdicts of a soak: texts, memory, threads and descriptors."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

TOLERANCE = 0.05  # of resident memory around its median
MAX_MORE = 16  # threads and descriptors, in the second half of the time


def verdicts(
    samples: Sequence[Any],
    *,
    num_different: int,
    left: Sequence[str],
    latencies_s: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """Judge the second half of the samples.

    Args:
        samples: What the process took, in order of time.
        num_different: Number of texts that differ from the text alone.
        left: Threads that did not end.
        latencies_s: Seconds of each call, by kind; not judged.

    Returns:
        Each measure, whether it is all right, and `ok`: whether all are.
    """
    late = samples[len(samples) // 2 :]
    rss = [sample.rss for sample in late]
    middle = statistics.median(rss)
    low, high = min(rss) / middle, max(rss) / middle
    threads = [sample.threads for sample in late]
    descriptors = [sample.descriptors for sample in late]
    found: dict[str, Any] = {
        "texts": {"different": num_different, "ok": not num_different},
        "memory": {
            "lowest": round(low, 4),
            "highest": round(high, 4),
            "median_mb": round(middle / 1e6),
            "ok": 1 - TOLERANCE <= low <= high <= 1 + TOLERANCE,
        },
        "threads": {**_span(threads), "left": list(left), "ok": _is_flat(threads) and not left},
        "descriptors": {**_span(descriptors), "ok": _is_flat(descriptors)},
    }
    return {
        "ok": all(each["ok"] for each in found.values()),
        **found,
        "latency_s": {kind: _latency(each) for kind, each in sorted(latencies_s.items())},
    }


def print_verdicts(found: Mapping[str, Any]) -> None:
    """Print what `verdicts` returns, one measure a line."""
    for kind, each in found["latency_s"].items():
        print(
            f"{kind:16} {each['calls']:6} calls  p50 {each['p50']:.2f} s  p95 {each['p95']:.2f} s"
        )
    for name in ("texts", "memory", "threads", "descriptors"):
        values = ", ".join(f"{key} {value}" for key, value in found[name].items() if key != "ok")
        print(f"{name}: {'ok' if found[name]['ok'] else 'WRONG'} ({values})")
    print("all right" if found["ok"] else "NOT all right")


def _span(values: Sequence[int]) -> dict[str, int]:
    return {"lowest": min(values), "highest": max(values)}


def _is_flat(values: Sequence[int]) -> bool:
    return max(values) <= min(values) + MAX_MORE


def _latency(seconds: Sequence[float]) -> dict[str, float]:
    # A single call has no quantiles.
    p50, p95 = (statistics.quantiles([*seconds, *seconds], n=20)[i] for i in (9, 18))
    return {"calls": len(seconds), "p50": round(p50, 3), "p95": round(p95, 3)}

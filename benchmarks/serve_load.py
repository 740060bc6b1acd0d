"""Load a server with concurrent streams: errors, memory, time to the first segment, fairness.

A server process serves the embedded pair. One caller keeps all but one stream busy, and another
has one stream, as if it were alone; each has an API key. Each stream is followed by the next at
once.

    python -m benchmarks.serve_load [--streams 256] [--minutes 5] [--max-tokens 64] [--out FILE]

First, streams run until the caches of prefixes are full, for --warm-up minutes at most; only errors
of these count. The last line is one JSON document. Its `verdicts` are: no stream failed and no
request is left; resident memory stays within 5 % of its median in the second half of the time; the
small caller gets at least 0.7 times as many streams as one stream of the large caller. Times are
reported, never judged. The status is 1 if a verdict fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx

PROMPTS = ("This movie", "The plot", "I watched this with my family and", "The acting was")
SMALL, LARGE = "small caller", "large caller"
KEYS = {SMALL: "sk-the-small-caller", LARGE: "sk-the-large-caller"}
RSS_EVERY_S = 1.0
CACHE_EVERY_S = 15.0
MAX_RSS_DEVIATION = 0.05  # of the second half from its median
MIN_SHARE = 0.7  # of the small caller's streams to those of one stream of the large caller


@dataclass
class Caller:
    """What one caller measured.

    Attributes:
        first_s: Seconds until the first segment, by stream.
        whole_s: Seconds until the end of the stream.
        errors: What went wrong.
    """

    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        """Return the figures as plain values."""
        return {
            "streams": len(self.whole_s),
            "errors": len(self.errors),
            "errors_seen": sorted(set(self.errors))[:5],
            "first_segment_s": _quantiles(self.first_s),
            "stream_s": _quantiles(self.whole_s),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=256, help="streams at once (256)")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long to start new ones (5)")
    parser.add_argument("--warm-up", type=float, default=5.0, help="minutes at most before (5)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of each stream (64)")
    parser.add_argument("--out", type=Path, help="a file for the JSON document")
    options = parser.parse_args()
    command = [sys.executable, "-m", "stars_engine", "serve", "--port", "0"]
    command += ["--max-requests-per-key", str(options.streams)]
    env = {**os.environ, "STARS_API_KEYS": "\n".join(KEYS.values())}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env
    ) as server:
        assert server.stderr is not None
        url = next(found[0] for line in server.stderr if (found := re.search("http://.*", line)))
        threading.Thread(target=server.stderr.read, daemon=True).start()
        try:
            report = asyncio.run(load(url, server.pid, options))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)
    report["exit_status"] = server.returncode
    report["verdicts"] = verdicts(report)
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(json.dumps(report))
    sys.exit(0 if all(report["verdicts"].values()) else 1)


def verdicts(report: Mapping[str, Any]) -> dict[str, bool]:
    """Judge a report."""
    return {
        "no_errors": report["errors"] == 0 and report["num_streams"] > 0,
        "nothing_in_progress": float(report["in_progress_at_the_end"]) == 0,
        "rss_flat": report["rss_mb"]["deviation_of_second_half"] <= MAX_RSS_DEVIATION,
        "fair": (report["fairness"].get("streams_small_to_one_large") or 0) >= MIN_SHARE,
        "clean_exit": report["exit_status"] == 0,
    }


async def load(url: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """Keep all streams busy until the time is over."""
    limits = httpx.Limits(max_connections=options.streams + 8)
    callers = {LARGE: Caller(), SMALL: Caller()}
    rss: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        while (await client.get("/readyz")).status_code != httpx.codes.OK:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        clock = Clock(options.minutes)
        streams = [
            asyncio.create_task(keep_busy(client, callers, index, clock, options))
            for index in range(options.streams)
        ]
        watcher = asyncio.create_task(watch(pid, rss))
        warm_up_s, cache_mb = await warm_up(client, 60 * options.warm_up)
        num_before = len(rss)
        for caller in callers.values():
            caller.first_s.clear()
            caller.whole_s.clear()
        clock.start()
        await asyncio.gather(*streams)
        watcher.cancel()
        metrics = (await client.get("/metrics", headers=headers_of(LARGE))).text
    return {
        "streams_at_once": options.streams,
        "minutes": options.minutes,
        "warm_up_s": round(warm_up_s, 1),
        "cache_mb": cache_mb,
        "max_tokens": options.max_tokens,
        "num_streams": sum(len(caller.whole_s) for caller in callers.values()),
        "errors": sum(len(caller.errors) for caller in callers.values()),
        **{name: caller.summary() for name, caller in callers.items()},
        "fairness": fairness(callers, options.streams),
        "rss_mb": summary_of_memory(rss, num_before),
        "in_progress_at_the_end": re.findall(r"_in_progress (\S+)", metrics)[-1],
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


class Clock:
    """When the last stream starts.

    Args:
        minutes: How long streams start once the clock has been started.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes, self._until_s = minutes, math.inf

    def start(self) -> None:
        """Let the time begin."""
        self._until_s = time.monotonic() + 60 * self._minutes

    @property
    def is_over(self) -> bool:
        """Whether no further stream starts."""
        return time.monotonic() >= self._until_s


async def warm_up(client: httpx.AsyncClient, most_s: float) -> tuple[float, float]:
    """Wait until the caches no longer grow; return the seconds, and the megabytes of the caches."""
    started_s, sizes = time.monotonic(), [0.0]
    while time.monotonic() - started_s < most_s:
        await asyncio.sleep(min(CACHE_EVERY_S, most_s))
        text = (await client.get("/metrics", headers=headers_of(LARGE))).text
        found = re.findall(r'(?m)^stars_engine_memory_bytes\{holder=".*kv_cache".*\} (\S+)', text)
        sizes.append(sum(map(float, found)) / 2**20)
        if sizes[-1] < 1.01 * sizes[-2] and len(sizes) > 3:
            break
    return time.monotonic() - started_s, round(sizes[-1], 1)


def summary_of_memory(rss: Sequence[float], num_before: int) -> dict[str, Any]:
    """Return the course of resident memory, and how far its second half leaves its median.

    Args:
        rss: The samples.
        num_before: How many of them are from before the time.
    """
    counted = rss[min(num_before, len(rss) - 1) :]
    half = counted[len(counted) // 2 :]
    middle = median(half)
    return {
        "after_start": rss[0],
        "after_warm_up": counted[0],
        "median_of_second_half": middle,
        "deviation_of_second_half": round(max(abs(mb / middle - 1) for mb in half), 4),
        "max": max(rss),
        "every_10_s": list(rss[:: round(10 / RSS_EVERY_S)]),
    }


def headers_of(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


def fairness(callers: dict[str, Caller], num_streams: int) -> dict[str, float | None]:
    """Compare the small caller with one stream of the large one; 1 means that both get the same."""
    small, large = callers[SMALL], callers[LARGE]
    if not small.whole_s or not large.whole_s or num_streams < 2:
        return {}
    each = len(large.whole_s) / (num_streams - 1)
    return {
        "streams_small_to_one_large": round(len(small.whole_s) / each, 3),
        "first_segment_small_to_large": round(median(small.first_s) / median(large.first_s), 3),
    }


async def keep_busy(
    client: httpx.AsyncClient,
    callers: dict[str, Caller],
    index: int,
    clock: Clock,
    options: argparse.Namespace,
) -> None:
    """Send one stream after the other; the first stream is that of the small caller."""
    name, count = SMALL if index == 0 else LARGE, 0
    while not clock.is_over:
        body = {
            "model": "embedded",
            "prompt": PROMPTS[(index + count) % len(PROMPTS)],
            "max_tokens": options.max_tokens,
            "seed": 1000 * index + count,
            "stream": True,
        }
        count += 1
        try:
            await read(client, body, name, callers[name])
        except (httpx.HTTPError, ValueError) as error:
            callers[name].errors.append(f"{type(error).__name__}: {error or error.__cause__!r}")


async def read(
    client: httpx.AsyncClient, body: dict[str, object], name: str, caller: Caller
) -> None:
    """Read one stream to its end."""
    started_s, first_s, ended = time.monotonic(), None, False
    headers = headers_of(name)
    async with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and first_s is None:
                first_s = time.monotonic() - started_s
            if '"error"' in line:
                raise ValueError(line)
            ended = ended or line == "data: [DONE]"
    if not ended or first_s is None:
        raise ValueError("the stream has no end")
    caller.first_s.append(first_s)
    caller.whole_s.append(time.monotonic() - started_s)


async def watch(pid: int, rss: list[float]) -> None:
    """Sample the memory of the server process in MB."""
    while True:
        fields = Path(f"/proc/{pid}/statm").read_text().split()  # noqa: ASYNC240 - no disk
        rss.append(round(int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1))
        await asyncio.sleep(RSS_EVERY_S)


def _quantiles(values: list[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {
        f"p{percent}": round(ordered[(len(ordered) - 1) * percent // 100], 3) if ordered else None
        for percent in (50, 95)
    }


if __name__ == "__main__":
    main()

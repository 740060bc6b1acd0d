"""Load a server with concurrent streams: errors, memory, time to the first segment, fairness.

A server process serves the embedded pair. One caller keeps all but one stream busy, and another
has one stream, as if it were alone. Each stream is followed by the next at once.

    python -m benchmarks.serve_load [--streams 256] [--minutes 5] [--max-tokens 64]

The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx

PROMPTS = ("This movie", "The plot", "I watched this with my family and", "The acting was")
SMALL, LARGE = "small caller", "large caller"


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
            "first_segment_s": _quantiles(self.first_s),
            "stream_s": _quantiles(self.whole_s),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()
    command = [sys.executable, "-m", "stars_engine", "serve", "--port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stderr is not None
        url = next(found[0] for line in server.stderr if (found := re.search("http://.*", line)))
        try:
            report = asyncio.run(load(url, server.pid, options))
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)
    report["exit_status"] = server.returncode
    print(json.dumps(report))


async def load(url: str, pid: int, options: argparse.Namespace) -> dict[str, object]:
    """Keep all streams busy until the time is over."""
    limits = httpx.Limits(max_connections=options.streams + 8)
    callers = {LARGE: Caller(), SMALL: Caller()}
    rss: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        while (await client.get("/readyz")).status_code != httpx.codes.OK:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        until_s = time.monotonic() + 60 * options.minutes
        streams = [
            keep_busy(client, callers[SMALL if index == 0 else LARGE], index, until_s, options)
            for index in range(options.streams)
        ]
        watcher = asyncio.create_task(watch(pid, rss))
        await asyncio.gather(*streams)
        watcher.cancel()
        metrics = (await client.get("/metrics")).text
    third = max(1, len(rss) // 3)
    for error in sorted({error for caller in callers.values() for error in caller.errors})[:5]:
        print("error:", error)
    return {
        "streams_at_once": options.streams,
        "minutes": options.minutes,
        "max_tokens": options.max_tokens,
        **{name: caller.summary() for name, caller in callers.items()},
        "rss_mb": {
            "after_start": rss[0] if rss else None,
            "median_of_second_third": median(rss[third : 2 * third] or rss),
            "median_of_last_third": median(rss[2 * third :] or rss),
            "max": max(rss),
        },
        "in_progress_at_the_end": re.findall(r"_in_progress (\S+)", metrics)[-1],
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


async def keep_busy(
    client: httpx.AsyncClient,
    caller: Caller,
    index: int,
    until_s: float,
    options: argparse.Namespace,
) -> None:
    """Send one stream after the other."""
    count = 0
    while time.monotonic() < until_s:
        body = {
            "model": "embedded",
            "prompt": PROMPTS[(index + count) % len(PROMPTS)],
            "max_tokens": options.max_tokens,
            "seed": 1000 * index + count,
            "stream": True,
        }
        count += 1
        try:
            await read(client, body, caller)
        except (httpx.HTTPError, ValueError) as error:
            caller.errors.append(f"{type(error).__name__}: {error}")


async def read(client: httpx.AsyncClient, body: dict[str, object], caller: Caller) -> None:
    """Read one stream to its end."""
    started_s, first_s, ended = time.monotonic(), None, False
    async with client.stream("POST", "/v1/completions", json=body) as answer:
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
        await asyncio.sleep(1)


def _quantiles(values: list[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    return {
        f"p{percent}": round(ordered[(len(ordered) - 1) * percent // 100], 3) if ordered else None
        for percent in (50, 95)
    }


if __name__ == "__main__":
    main()

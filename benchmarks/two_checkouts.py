"""Compare two checkouts of this repository: `local_engine` and `concurrent_calls`, side by side.

    git worktree add ../before COMMIT
    python -m benchmarks.two_checkouts ../before . [--turns 12] [--tokens 128]

One process per checkout keeps both models loaded. The processes take turns: each turn runs every
row once in each checkout, in alternating order and with the same seeds. A row is the processor time
per kept token (of concurrent calls: seconds) of the second checkout over the first's. The table
gives the median of the ratios within its 95% interval. Modules that `local_engine` and
`concurrent_calls` import must exist in both checkouts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.local_engine import SIZE, interval
from benchmarks.pair import Pair, Setting
from langchain_stars import StarsLLM

ROWS = {
    f"prompt of {length}, accepted {acceptance}, prompts {count}, m = {candidates}": (
        Setting(length, acceptance, 32, count),
        None if candidates == "plain" else candidates,
    )
    for length, acceptance, count, candidates in [
        (512, 0.2, 1, "auto"),
        (512, 0.2, 1, 8),
        (512, 0.5, 1, "auto"),
        (2048, 0.2, 1, "auto"),
        (2048, 0.2, 1, 8),
        (2048, 0.5, 1, "auto"),
        (512, 0.2, 8, "auto"),
        (512, 0.2, 8, 8),
        (512, 1.0, 1, "plain"),
    ]
}
CALLS = {"16 concurrent calls": ThreadPoolExecutor.map, "16 calls in turn": None}


def main() -> None:
    options = read_options()
    workers = [Worker(Path(path), options.tokens) for path in options.checkouts]
    found: dict[str, list[float]] = {name: [] for name in (*ROWS, *CALLS)}
    for turn in range(options.turns + 1):
        for name, ratios in found.items():
            order = workers if turn % 2 else workers[::-1]
            seconds = {worker: worker.ask(name, turn) for worker in order}
            if turn:  # the first turn warms up
                ratios.append(seconds[workers[1]] / seconds[workers[0]])
        print(f"turn {turn} of {options.turns}", file=sys.stderr)
    print("| row | second / first |")
    for name, ratios in found.items():
        low, middle, high = interval(ratios)
        print(f"| {name} | {low:.3f} < {middle:.3f} < {high:.3f} |")
    for worker in workers:
        worker.close()


class Worker:
    """A process that measures one checkout."""

    def __init__(self, root: Path, tokens: int) -> None:
        code = Path(__file__).read_text(encoding="utf-8")
        command = [sys.executable, "-c", code, "--serve", str(tokens)]
        env = {**os.environ, "PYTHONPATH": str(root.resolve())}
        self._process = subprocess.Popen(
            command, cwd=root, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, name: str, turn: int) -> float:
        """Return the seconds of a row."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, turn]) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(tokens: int) -> None:
    """Measure what is asked on standard input."""
    torch.set_num_threads(1)
    pair = Pair(SIZE, torch.float32, 4096, "cpu", processor_seconds)
    llm = StarsLLM(max_tokens=64, seed=7, num_candidates=4)
    prompts = [f"Film number {index}" for index in range(16)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        for line in sys.stdin:
            name, turn = json.loads(line)
            if name in ROWS:
                setting, count = ROWS[name]
                seconds, _ = pair.write(setting, count, num_tokens=tokens, seed=100 * turn)
            else:
                run: Callable[..., Any] = map if CALLS[name] is None else pool.map
                started_s = time.perf_counter()
                list(run(llm.invoke, prompts))
                seconds = time.perf_counter() - started_s
            print(seconds, flush=True)


def processor_seconds(run: Callable[[], Any]) -> float:
    started_s = time.process_time()
    run()
    return time.process_time() - started_s


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.two_checkouts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkouts", nargs=2, metavar="CHECKOUT")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(int(sys.argv[2]))
    else:
        main()

"""Interrupt runs at random moments: does each end with the exit code that is due?

    python -m benchmarks.interruptions [--runs 200] [--jobs 2] [--seed 0] [--only program]

A run is a small `stars generate` or Python program on the embedded pair. It gets Ctrl-C (once, or
twice, as `timeout` sends it), SIGTERM, or an exception or `sys.exit` from a signal handler, at a
moment drawn uniformly from the time that an undisturbed run takes. Due are 130 for Ctrl-C (Python
programs end themselves with SIGINT, which shells report as 130), the signal for SIGTERM, 1 for an
exception, 7 for `sys.exit(7)`, and 0 if the run was complete before. Prints every run that ended
otherwise, and how long the ends took. Exits with 1 if there was one.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

NUM_PROMPTS = 8
COMPLETE = "complete\n"
LATE_S = 60.0  # a run that takes so much longer hangs

COMMAND = "from stars_engine.cli import main; main()"
PROGRAM = """
import signal, sys
from stars_engine import SamplingParams, StarsEngine
engine = StarsEngine()
sampling = SamplingParams(seed=1, max_tokens=24)
engine.generate(["Film %d" % i for i in range(8)], sampling=sampling)
stream = engine.stream(["Film", "Movie"], sampling=sampling)
for event in stream:
    pass
print("complete", flush=True)
"""
RAISE = """
import signal, sys
def handle(*_):
    {action}
signal.signal(signal.SIGUSR1, handle)
print("ready", flush=True)
"""


@dataclass(frozen=True)
class Kind:
    """A way to end a run.

    Attributes:
        code: What Python runs.
        args: The arguments of the command line.
        sent: The signals.
        due: The exit codes that are due.
    """

    code: str
    args: tuple[str, ...]
    sent: tuple[signal.Signals, ...]
    due: tuple[int, ...]


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        kind: The name of its kind.
        moment_s: When it was disturbed, in seconds after its start.
        status: Its exit code; None if it hung.
        seconds: From the signal to the end.
        complete: Whether it had printed all its output.
        messages: Its standard error.
    """

    kind: str
    moment_s: float
    status: int | None
    seconds: float
    complete: bool
    messages: str

    @property
    def is_due(self) -> bool:
        """Whether the exit code is due."""
        bad = ("terminate called", "Fatal Python error", "Segmentation fault")
        if any(words in self.messages for words in bad):
            return False
        kind = KINDS[self.kind]
        if self.status in kind.due:
            return True
        # Python restores the default actions of signals when it ends.
        return self.complete and self.status in (0, *(-number for number in kind.sent))


CTRL_C = (130, -signal.SIGINT)
GENERATE = ("generate", "--seed", "1", "--max-tokens", "24", "--prompts")
KINDS = {
    "command, Ctrl-C": Kind(COMMAND, GENERATE, (signal.SIGINT,), CTRL_C),
    "command, Ctrl-C twice": Kind(COMMAND, GENERATE, (signal.SIGINT, signal.SIGINT), CTRL_C),
    "command, SIGTERM": Kind(COMMAND, GENERATE, (signal.SIGTERM,), (-signal.SIGTERM,)),
    "program, Ctrl-C": Kind(PROGRAM, (), (signal.SIGINT,), CTRL_C),
    "program, SIGTERM": Kind(PROGRAM, (), (signal.SIGTERM,), (-signal.SIGTERM,)),
    "program, exception": Kind(
        RAISE.format(action="raise RuntimeError('boom')") + PROGRAM, (), (signal.SIGUSR1,), (1,)
    ),
    "program, sys.exit": Kind(
        RAISE.format(action="sys.exit(7)") + PROGRAM, (), (signal.SIGUSR1,), (7,)
    ),
}


def end_one(prompts: Path, name: str, moment_s: float) -> Ended:
    """Start a run, disturb it after a while, and wait for its end."""
    kind = KINDS[name]
    files = (str(prompts),) if kind.args else ()
    run = subprocess.Popen(
        [sys.executable, "-c", kind.code, *kind.args, *files],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if signal.SIGUSR1 in kind.sent:  # its handler must be there
        assert run.stdout is not None
        run.stdout.readline()
    time.sleep(moment_s)
    for number in kind.sent:
        run.send_signal(number)
    sent_s = time.monotonic()
    try:
        output, messages = run.communicate(timeout=LATE_S)
    except subprocess.TimeoutExpired:
        run.kill()
        output, messages = run.communicate()
        return Ended(name, moment_s, None, LATE_S, complete=False, messages=messages)
    complete = COMPLETE in output or len(output.split("Film number")) == NUM_PROMPTS + 1
    seconds = time.monotonic() - sent_s
    return Ended(name, moment_s, run.returncode, seconds, complete, messages)


def undisturbed_s(name: str, prompts: Path) -> float:
    """Return how long a run of a kind takes."""
    kind = KINDS[name]
    files = (str(prompts),) if kind.args else ()
    started_s = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", kind.code, *kind.args, *files], check=True, capture_output=True
    )
    return time.monotonic() - started_s


def end_many(num_runs: int, *, jobs: int, seed: int, only: str = "") -> list[Ended]:
    """End runs of all kinds in turn, or of those whose names begin with `only`."""
    chosen = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        prompts = Path(folder, "prompts.txt")
        prompts.write_text("\n".join(f"Film number {i}" for i in range(NUM_PROMPTS)))
        kinds = [name for name in KINDS if name.startswith(only)]
        names = [kinds[index % len(kinds)] for index in range(num_runs)]
        takes = {
            "command": undisturbed_s("command, Ctrl-C", prompts),
            "program": undisturbed_s("program, Ctrl-C", prompts),
        }
        moments = [0.1 + takes[name.split(",")[0]] * chosen.random() for name in names]
        ended = []
        for each in pool.map(partial(end_one, prompts), names, moments):
            ended.append(each)
            print(f"{each.kind}: {each.status} in {each.seconds:.2f} s", file=sys.stderr)
            if not each.is_due:
                print(f"WRONG {each.kind}, {each.moment_s:.2f} s: {each.status}", flush=True)
                print(each.messages[-2000:], flush=True)
        return ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="beginning of the names of kinds to run")
    options = parser.parse_args()
    ended = end_many(options.runs, jobs=options.jobs, seed=options.seed, only=options.only)
    by_kind: dict[str, list[Ended]] = defaultdict(list)
    for each in ended:
        by_kind[each.kind].append(each)
    print(
        "| run | runs | exit codes | wrong | median end | longest end |\n|---|---|---|---|---|---|"
    )
    for name, some in by_kind.items():
        codes = Counter(str(each.status) for each in some)
        shown = ", ".join(f"{code}: {count}" for code, count in codes.most_common())
        wrong = sum(not each.is_due for each in some)
        longest = max(each.seconds for each in some)
        usual = median(each.seconds for each in some)
        print(f"| {name} | {len(some)} | {shown} | {wrong} | {usual:.2f} s | {longest:.2f} s |")
    return any(not each.is_due for each in ended)


if __name__ == "__main__":
    sys.exit(main())

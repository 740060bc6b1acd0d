"""Measure how long a small request waits beside one heavy request, on the embedded pair.

The small request is repeated while the heavy one runs. The report has the median and the longest
wait beside each heavy request, alone, and how the heavy request ended. It also has the CPU time of
the process during the wait that used most, which depends less on what else the machine does; the
CPU time of background threads is included. Heavy requests that exceed a bound of `EngineParams` are
refused; `--unbounded` raises the bounds.

`singles` is another measurement: a call of 600 prompts beside 320 callers with one prompt each, all
at once. It reports the waits of the latter, and how much of the large call was done meanwhile.

    python -m benchmarks.isolation [--repetitions 3] [--seconds 3] [--only n_million singles]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any, NamedTuple

import torch

from stars_engine import (
    AlignParams,
    Chat,
    ChoiceGrammar,
    EngineParams,
    JsonGrammar,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)

SMALL = SamplingParams(seed=1, max_tokens=16)
SENTENCE = "The film was not good at all, I think. "
UNBOUNDED = EngineParams(
    max_n=10**7,
    max_answers=10**7,
    max_prompt_chars=10**9,
    max_grammar_chars=10**9,
    max_stop_strings=10**7,
)


def text_of(num_chars: int) -> str:
    return SENTENCE * (num_chars // len(SENTENCE))


def choices_of(count: int, run: int) -> SamplingParams:
    return SMALL.replace(grammar=ChoiceGrammar(choices=[f"{run} {i}" for i in range(count)]))


def schema_of(count: int, run: int) -> SamplingParams:
    schema = {
        "type": "object",
        "properties": {f"property{i}": {"type": "integer", "minimum": i} for i in range(count)},
        "title": f"run {run}",
    }
    return SMALL.replace(grammar=JsonGrammar(json_schema=schema))


def chat_of(num_messages: int, num_tools: int, run: int) -> Chat:
    properties = {f"property{i}": {"type": "integer"} for i in range(5)}
    return Chat(
        [{"role": "user", "content": f"Message {run} {i}"} for i in range(num_messages)],
        tools=[
            {"name": f"tool{run}_{i}", "parameters": {"type": "object", "properties": properties}}
            for i in range(num_tools)
        ],
    )


def heavy_requests() -> dict[str, Callable[[int], dict[str, Any]]]:
    """Return the arguments of each heavy request, which differ in each repetition.

    `call` is the method that gets them, `submit` if it is absent.
    """
    return {
        "n_million": lambda run: {"prompts": "a", "sampling": SMALL.replace(n=10**6, seed=run)},
        "n_4096": lambda run: {"prompts": "a", "sampling": SMALL.replace(n=4096, seed=run)},
        "prompts_20000": lambda run: {"prompts": [f"Film {run} {i}" for i in range(20_000)]},
        "choices_100000": lambda run: {"prompts": "a", "sampling": choices_of(10**5, run)},
        "schema_5000": lambda run: {"prompts": "a", "sampling": schema_of(5000, run)},
        "reward_prompt_1mb": lambda run: {
            "prompts": f"a {run}",
            "reward_prompt": text_of(10**6) + str(run),
            "sampling": SMALL.replace(n=4),
        },
        "prompt_2mb": lambda run: {"prompts": text_of(2 * 10**6) + str(run)},
        "stop_strings_million": lambda run: {
            "prompts": "a",
            "sampling": SMALL.replace(stop=tuple(f"stop {run} {i}" for i in range(10**6))),
        },
        "long_segments": lambda run: {
            "prompts": f"a {run}",
            "align": AlignParams(segment_len=400, lookahead=300),
            "sampling": SMALL.replace(max_tokens=480, n=4, seed=run),
        },
        "long_segments_one_row": lambda run: {
            "prompts": f"a {run}",
            "align": AlignParams(segment_len=400, num_candidates=1),
            "sampling": SMALL.replace(max_tokens=480, seed=run),
        },
        "best_of_4096": lambda run: {
            "call": "best_of_n",
            "prompts": f"a {run}",
            "n": 4096,
            "sampling": SMALL.replace(seed=run),
        },
        "n_4096_streamed": lambda run: {
            "call": "stream",
            "prompts": "a",
            "sampling": SMALL.replace(n=4096, seed=run),
        },
        "scores_long": lambda run: {
            "call": "score",
            "prompt": "a",
            "texts": [f"{run} {i} " + text_of(3000) for i in range(2000)],
        },
        "scores_short": lambda run: {
            "call": "score",
            "prompt": "a",
            "texts": [f"{run} {i}" for i in range(20_000)],
        },
        "logit_bias_million": lambda run: {
            "prompts": "a",
            "sampling": SMALL.replace(logit_bias=dict.fromkeys(range(10**6), 0.1 + run)),
        },
        "logit_bias_4096": lambda run: {
            "prompts": "a",
            "sampling": SMALL.replace(
                logit_bias=dict.fromkeys(range(1024), 0.1 + run), n=4096, seed=run
            ),
        },
        "tools_1000": lambda run: {"prompts": chat_of(1, 1000, run)},
        "conversation_20000": lambda run: {"prompts": chat_of(20_000, 0, run)},
        "stop_strings_1024": lambda run: {
            "prompts": "a",
            "sampling": SMALL.replace(stop=tuple(f"stop {run} {i}" for i in range(1024)), n=64),
        },
    }


class Wait(NamedTuple):
    """How long a small request took, and the CPU time of the process meanwhile, in seconds."""

    wall_s: float
    cpu_s: float


def wait_of_small(engine: StarsEngine, prompt: str = "hi") -> Wait:
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    engine.generate(prompt, sampling=SMALL)
    return Wait(time.perf_counter() - started_s, time.process_time() - started_cpu_s)


def call(engine: StarsEngine, call: str = "submit", **arguments: Any) -> Any:
    """Make a heavy call; return its future, or None when it is done."""
    if call != "score":
        arguments = {"sampling": SMALL, **arguments}
    if call == "submit":
        return engine.submit(**arguments)
    if call == "score":
        asyncio.run(engine.ascore(**arguments))
    elif call == "stream":
        for _ in engine.stream(**arguments):
            pass
    else:
        getattr(engine, call)(**arguments)
    return None


def measure(engine: StarsEngine, arguments: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Repeat the small request beside a heavy one, which is cancelled at the end."""
    outcome: dict[str, Any] = {}
    submitted = threading.Event()

    def submit() -> None:
        try:
            outcome["future"] = call(engine, **arguments)
        except Exception as error:  # noqa: BLE001 - reported
            outcome["error"] = error
        submitted.set()

    heavy = threading.Thread(target=submit)
    heavy.start()
    waits, until_s = [], time.monotonic() + seconds
    while time.monotonic() < until_s or not waits:
        waits.append(wait_of_small(engine))
        future = outcome.get("future")
        if submitted.is_set() and (future is None or future.done()):
            break
    future = outcome.get("future")
    ended = "running"
    if "error" in outcome:
        ended = f"refused: {outcome['error']}"[:160]
    elif submitted.is_set() and future is None:
        ended = "done"
    elif future is not None and future.done():
        error = future.exception()
        ended = "done" if error is None else f"refused: {error}"[:160]
    if future is not None:
        future.cancel()
    elif not submitted.is_set():  # the call waits for room in the queue, or for its answers
        ended = "in progress"
    return {"waits": waits, "ended": ended}


def measure_singles(engine: StarsEngine, run: int) -> dict[str, Any]:
    """Let 320 callers with one prompt each start together beside a call of 600 prompts."""
    lengths = SMALL.replace(max_tokens=64)
    with engine.stream([f"Film {run} {i}" for i in range(600)], sampling=lengths) as stream:
        ended = threading.Event()
        num_segments = num_done = 0

        def count() -> None:
            nonlocal num_segments, num_done
            for event in stream:
                if not ended.is_set():
                    num_segments += event.segment is not None
                    num_done += event.result is not None

        reader = threading.Thread(target=count)
        reader.start()
        with ThreadPoolExecutor(320) as callers:
            waits = list(callers.map(lambda i: wait_of_small(engine, f"Hi {run} {i}"), range(320)))
        ended.set()
        stream.cancel()
        reader.join()
    return {"waits": waits, "ended": f"{num_segments} segments, {num_done} of 600 done meanwhile"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--unbounded", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    params = UNBOUNDED if options.unbounded else EngineParams()
    report: dict[str, Any] = {}
    for name, arguments_of in {**heavy_requests(), "singles": None}.items():
        if options.only and name not in options.only:
            continue
        rows = []
        for run in range(options.repetitions):
            # Made before anything is measured.
            arguments = None if arguments_of is None else arguments_of(run)
            # An engine of its own, since a call that is in line cannot be withdrawn.
            with StarsEngine(StarsConfig(engine=params)) as engine:
                alone = [wait_of_small(engine) for _ in range(5)][1:]
                row = (
                    measure_singles(engine, run)
                    if arguments is None
                    else measure(engine, arguments, options.seconds)
                )
                rows.append({"alone": alone, **row})
        waits = [[wait.wall_s for wait in row["waits"]] for row in rows]
        cpu = [max(wait.cpu_s for wait in row["waits"]) for row in rows]
        report[name] = {
            "alone_s": round(median(wait.wall_s for row in rows for wait in row["alone"]), 3),
            "alone_cpu_s": round(median(wait.cpu_s for row in rows for wait in row["alone"]), 3),
            "median_s": round(median(map(median, waits)), 3),
            "longest_s": round(median(map(max, waits)), 3),
            "longest_cpu_s": round(median(cpu), 3),
            "heavy": rows[-1]["ended"],
        }
        print(name, json.dumps(report[name]), flush=True)
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads()}
    print(json.dumps({**report, **machine}, indent=2))


if __name__ == "__main__":
    main()

"""Measure the time per accepted token of the local engine, in units of plain sampling.

    python -m benchmarks.local_engine [--lengths 64 512 2048] [--acceptances 0.2 0.5 0.8]
        [--segment-lens 32] [--prompts 1] [--tokens 128] [--repetitions 4] [--dtype float32]

The language model has 37 M and the reward model 25 M random parameters (Llama: 8 layers of 384, 6
heads, 2 of keys; and 8 of 320), vocabulary 32,000. A coin accepts each candidate with the given
probability, whatever the reward model says; the reward model runs nevertheless. The unit is our own
plain sampling of as many tokens, one prompt at a time, without any reward. `generate` (temperature
1, top-k 40) is given in the same unit. "over plain sampling at the same concurrency" divides "ours,
adaptive" by plain sampling of as many prompts together instead. "generated tokens per kept one"
counts all tokens of "ours, adaptive": kept, rejected and surplus. Only decoding is timed; reading
the prompt is reported separately. Time is processor time of one thread. Arms take turns. Ratios are
taken within a turn, and their median is given within its 95% interval (by order statistics: of six
turns, the smallest and the largest).

Three facts decide the results. A decode step reads all weights whether it decodes one row or eight,
so eight candidates cost little more than one (the first table has a step's cost by rows). A
rejected step costs one more step. The prompt's keys are read once for all of a prompt's candidates,
so a longer prompt costs little more than in plain sampling.

"generate per attempt" and "no cache" are computed, not run: blocks measured here times the mean
number of draws. The first is one call of `generate` and a whole pass of the reward model for each
draw. The second is one pass over the prompt and 64 tokens for each token, as in published code
without a cache.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import transformers

from benchmarks.pair import MAX_ATTEMPTS, Pair, Setting, Size

BEHIND = 64  # tokens of the answer that published code reads again, on average

SIZE = Size(
    lm={
        "num_hidden_layers": 8,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    rm={
        "num_hidden_layers": 8,
        "hidden_size": 320,
        "intermediate_size": 864,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
    },
    vocab_size=32_000,
)


def block(pair: Pair, setting: Setting, seed: int) -> tuple[float, float]:
    """Return seconds of an attempt per token: by `generate` and a whole reward pass, and uncached.

    The second is one pass of both models over everything for each token, as in code without any
    cache.
    """
    length = setting.length + BEHIND
    ids = torch.tensor([pair.prompt(length, seed)])
    whole = torch.tensor([pair.prompt(length + setting.segment_len, seed)])
    per_call = pair.seconds(lambda: pair.call_generate(ids, setting.segment_len))
    with torch.inference_mode():
        judged = pair.seconds(lambda: pair.reward_model(whole, use_cache=False))
        forward = pair.seconds(lambda: pair.lm.model(ids, use_cache=False, logits_to_keep=1))
    return (per_call + judged) / setting.segment_len, forward + judged / setting.segment_len


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    dtype = getattr(torch, options.dtype)
    longest = max(options.lengths) + BEHIND + options.tokens + 64
    pair = Pair(SIZE, dtype, longest, "cpu", _seconds)
    report: dict[str, Any] = {
        "dtype": options.dtype,
        "paths": [pair.lm.path, pair.rm.path],
        "tokens": options.tokens,
        "repetitions": options.repetitions,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": platform.processor() or platform.machine(),
        "steps": {},
        "rows": [],
    }
    counts = (1, 2, 4, 8, 16)
    print("| prompt | decode step, rows: " + " | ".join(map(str, counts)) + " |")
    for length in options.lengths:
        turns = [pair.step_costs(length, counts) for _ in range(options.repetitions + 1)][1:]
        ratios = [median(turn[k] / turn[0] for turn in turns) for k in range(len(counts))]
        report["steps"][length] = ratios
        print(f"| {length} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    print("| prompt | accepted | segment | prompts | " + " | ".join(_ARMS) + " |", flush=True)
    for setting in [
        Setting(length, acceptance, segment_len, num_prompts)
        for num_prompts in options.prompts
        for segment_len in options.segment_lens
        for acceptance in options.acceptances
        for length in options.lengths
    ]:
        row = measure(pair, setting, options)
        report["rows"].append({**vars(setting), **row})
        cells = [f"{low:.2f} < {mid:.2f} < {high:.2f}" for low, mid, high in row.values()]
        named = f"{setting.length} | {setting.acceptance} | {setting.segment_len}"
        print(f"| {named} | {setting.num_prompts} | " + " | ".join(cells) + " |", flush=True)
    print(json.dumps(report))


_ARMS = (
    "ours, adaptive",
    "ours, m = 1",
    "ours, m = 8",
    "generate",
    "generate per attempt",
    "no cache",
    "over plain sampling at the same concurrency",
    "generated tokens per kept one",
    "reading both prompts / plain answer",
)
_TOGETHER = "over plain sampling at the same concurrency"
_GENERATED = "generated tokens per kept one"


def measure(
    pair: Pair, setting: Setting, options: argparse.Namespace
) -> dict[str, tuple[float, float, float]]:
    """Return the columns of a row, each as the median in its interval.

    Most are an arm's time per kept token over plain sampling's.
    """
    alone = Setting(setting.length, setting.acceptance, setting.segment_len, 1)
    draws = sum((1 - setting.acceptance) ** i for i in range(MAX_ATTEMPTS))
    found: dict[str, list[float]] = {name: [] for name in _ARMS}
    for turn in range(options.repetitions + 1):
        seed = 100 * turn
        size = {"num_tokens": options.tokens, "seed": seed}
        unit, _ = pair.write(alone, None, **size)
        values = {}
        for name, count in (("ours, adaptive", "auto"), ("ours, m = 1", 1), ("ours, m = 8", 8)):
            seconds, reading_s = pair.write(setting, count, **size)
            values[name] = seconds
            if count == "auto":
                values[_ARMS[-1]] = reading_s / (options.tokens * setting.num_prompts)
                generated = pair.generated_per_kept
        values["generate"] = pair.generate(setting.length, **size)
        per_attempt, uncached = block(pair, setting, seed)
        values["generate per attempt"] = draws * per_attempt
        values["no cache"] = draws * uncached
        together, _ = pair.write(setting, None, **size)
        again, _ = pair.write(alone, None, **size)
        if turn:  # the first turn warms up
            for name, value in values.items():
                found[name].append(value / ((unit + again) / 2))
            found[_TOGETHER].append(values["ours, adaptive"] / together)
            found[_GENERATED].append(generated)
    return {name: interval(values) for name, values in found.items()}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median between the order statistics that contain it with 95%, or the extremes.

    This holds for any distribution: the median lies outside the k-th smallest and k-th largest of n
    with probability 2 P(Binomial(n, 1/2) < k).
    """
    ordered, count = sorted(values), len(values)
    place = 0
    while 2 * sum(math.comb(count, i) for i in range(place + 2)) <= 0.05 * 2**count:
        place += 1
    return ordered[place], median(ordered), ordered[-1 - place]


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.local_engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--acceptances", type=float, nargs="+", default=[0.2, 0.5, 0.8])
    parser.add_argument("--segment-lens", type=int, nargs="+", default=[32])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=6)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    return parser.parse_args()


def _seconds(run: Callable[[], Any]) -> float:
    started_s = time.process_time()
    run()
    return time.process_time() - started_s


if __name__ == "__main__":
    main()

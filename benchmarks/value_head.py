"""What guidance by a value head costs: STARS with the embedded head against plain sampling.

    python -m benchmarks.value_head [--turns 9] [--tokens 96]

Both generate answers of the same length, in turn, with the same seeds. A row is the processor time
per kept token over that of plain sampling of as many prompts at once: the median of the turns'
ratios within its 95% interval. Then follow drafted tokens per kept one, and generated ones, which
include candidates that were not used. Thresholds are calibrated for the acceptance of the row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.local_engine import interval
from stars_engine import AlignParams, SamplingParams, StarsConfig, StarsEngine, calibrate
from stars_engine.types import StarsResult

PROMPTS = [
    f"{start} {noun}"
    for start in ("This", "The whole", "Such a", "In short, the")
    for noun in ("movie", "film", "story", "actor")
]


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    base = AlignParams(segment_len=8, max_attempts=20)
    sampling = SamplingParams(max_tokens=options.tokens, min_tokens=options.tokens)
    config = StarsConfig(reward="stars:embedded-value", align=base, sampling=sampling)
    print(
        "| prompts at once | accepted | time over plain sampling | drafted per kept token | "
        "generated |"
    )
    print("|---:|---:|---|---:|---:|")
    with StarsEngine(config) as engine:
        for target in options.acceptance:
            schedule = calibrate(engine, PROMPTS, target_acceptance=target, seed=1)
            align = base.replace(schedule=schedule)
            for count in (1, 16):
                ratios, times = [], []
                for turn in range(options.turns + 1):
                    prompts = PROMPTS[:count] if count > 1 else [PROMPTS[turn % len(PROMPTS)]]
                    ways: list[Callable[..., list[StarsResult]]] = [engine.vanilla, engine.generate]
                    seconds = {}
                    for way in ways if turn % 2 else ways[::-1]:
                        settings: dict[str, Any] = (
                            {"align": align} if way == engine.generate else {}
                        )
                        started_s = time.process_time()
                        results = way(prompts, sampling.replace(seed=turn), **settings)
                        seconds[way] = time.process_time() - started_s
                        if settings and turn:
                            kept = sum(result.usage.num_kept_tokens for result in results)
                            drafted = sum(each.usage.num_drafted_tokens for each in results)
                            generated = sum(each.usage.num_generated_tokens for each in results)
                            times.append((drafted / kept, generated / kept))
                    if turn:  # the first turn warms up
                        ratios.append(seconds[engine.generate] / seconds[engine.vanilla])
                low, middle, high = interval(ratios)
                print(
                    f"| {count} | {target:g} | {middle:.2f} [{low:.2f}, {high:.2f}] | "
                    + " | ".join(f"{median(each):.2f}" for each in zip(*times, strict=True))
                    + " |",
                    flush=True,
                )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.value_head",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--acceptance", type=float, nargs="+", default=[0.5, 0.3])
    return parser.parse_args()


if __name__ == "__main__":
    main()

"""Measure the throughput of concurrent calls against sequential ones, on the embedded pair.

Both arms run in one process, warm, in turns. The report has the medians and the steps of each arm.

    python benchmarks/concurrent_calls.py [--calls 32] [--repetitions 5]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import torch
import transformers

from langchain_stars import StarsLLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--num-candidates", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    llm = StarsLLM(max_tokens=options.max_tokens, seed=7, num_candidates=options.num_candidates)
    prompts = [f"Film number {index}" for index in range(options.calls)]
    expected = [llm.invoke(prompt) for prompt in prompts[:4]]  # warm
    seconds: dict[str, list[float]] = {"sequential": [], "concurrent": []}
    steps: dict[str, list[int]] = {"sequential": [], "concurrent": []}
    differing = 0
    with ThreadPoolExecutor(options.calls) as pool:
        for _ in range(options.repetitions):
            texts = {}
            for arm, run in (("sequential", map), ("concurrent", pool.map)):
                before, started_s = llm.engine().stats().num_steps, time.perf_counter()
                texts[arm] = list(run(llm.invoke, prompts))
                seconds[arm].append(time.perf_counter() - started_s)
                steps[arm].append(llm.engine().stats().num_steps - before)
            differing += sum(a != b for a, b in zip(*texts.values(), strict=True))
    assert expected
    llm.close()
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    report = {
        "calls": options.calls,
        "max_tokens": options.max_tokens,
        "num_candidates": options.num_candidates,
        "median_s": {arm: round(median(values), 3) for arm, values in seconds.items()},
        "median_steps": {arm: median(values) for arm, values in steps.items()},
        "median_throughput_ratio": round(median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "texts_that_differed": differing,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

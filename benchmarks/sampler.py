"""Measure the time to draw a token, with and without a shortlist of choices.

    python -m benchmarks.sampler [--vocab-sizes 32000 128256 256000] [--rows 1 8] [--repetitions 30]

Logits are random and normal, float32, one thread. Both ways take turns. The result is the median
processor time in milliseconds for all rows together. The text is the same
(`tests/law/test_proposal.py`).
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from stars_engine import SamplingParams, sampling

SETTINGS = {
    "top-k 40": SamplingParams(temperature=0.8, top_k=40),
    "top-p 0.95": SamplingParams(temperature=0.8, top_k=None, top_p=0.95),
    "top-k 40, top-p 0.95, min-p 0.05": SamplingParams(
        temperature=0.8, top_k=40, top_p=0.95, min_p=0.05
    ),
}


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[32_000, 128_256, 256_000])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repetitions", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}\n")
    print("| vocabulary | rows | settings | whole, ms | shortlist, ms | ratio |")
    print("|---:|---:|---|---:|---:|---:|")
    for vocab_size in args.vocab_sizes:
        for rows in args.rows:
            # As peaked as those of a language model: a nucleus of a few dozen tokens.
            logits, uniforms = torch.randn(rows, vocab_size) * 4, torch.rand(rows)
            for name, params in SETTINGS.items():
                whole, few = compare(logits, uniforms, params, args.repetitions)
                cells = f"{1e3 * whole:.2f} | {1e3 * few:.2f} | {whole / few:.1f}"
                print(f"| {vocab_size:,} | {rows} | {name} | {cells} |", flush=True)


def compare(
    logits: torch.Tensor, uniforms: torch.Tensor, params: SamplingParams, repetitions: int
) -> tuple[float, float]:
    """Return the median seconds of both ways."""
    shortlist = sampling._shortlist  # noqa: SLF001 - the function under test
    ways = (lambda *_: None, shortlist)
    seconds: list[list[float]] = [[], []]
    try:
        for _ in range(repetitions + 1):
            for way, taken in zip(ways, seconds, strict=True):
                sampling._shortlist = way  # noqa: SLF001
                started = time.process_time()
                sampling.propose(logits, params).draw(uniforms)
                taken.append(time.process_time() - started)
    finally:
        sampling._shortlist = shortlist  # noqa: SLF001
    whole, few = (median(taken[1:]) for taken in seconds)
    return whole, few


if __name__ == "__main__":
    main()

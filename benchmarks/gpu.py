"""Compare the local engine on a GPU with its memory bandwidth, and with `generate`.

    python -m benchmarks.gpu [--size 8b] [--length 2048] [--acceptance 0.2] [--tokens 128]
        [--repetitions 6] [--device cuda] [--dtype bfloat16] [--prompts 32]

The two models have the chosen size and random weights (Llama; 8b: 32 layers of 4096, 32 heads, 8 of
keys, vocabulary 128,256, both in bfloat16 30 GiB). The second one is the reward model. A coin
decides what is accepted; the reward model runs nevertheless. Times are wall time, with the device
synchronized. Arms take turns; ratios are taken within a turn.

The roofline: a decode step must read all weights except the embedding, and the prompt's keys and
values once, whatever the number of candidates. These bytes over the measured bandwidth of a copy
within the device are the minimum time. The share is the minimum over the measured time.

The results are printed as a table and as one line of JSON. `--size tiny --device cpu` only checks
that the script runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import transformers

from benchmarks.local_engine import interval
from benchmarks.pair import Pair, Setting, Size

_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
_1B = {
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
_TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SIZES = {
    "8b": Size(_8B, _8B, vocab_size=128_256, max_rows=512),
    "1b": Size(_1B, _1B, vocab_size=128_256, max_rows=512),
    "tiny": Size(_TINY, _TINY, vocab_size=1000, max_rows=512),
}
ROWS = (1, 4, 8, 16, 32)
COPIED = 2 << 30  # bytes


def main() -> None:
    options = read_options()
    transformers.utils.logging.set_verbosity_error()
    dtype = getattr(torch, options.dtype)
    longest = options.length + options.tokens + 64
    clock = clock_of(options.device)
    pair = Pair(SIZES[options.size], dtype, longest, options.device, clock)
    on_gpu = options.device.startswith("cuda")
    report: dict[str, Any] = {
        **vars(options),
        "chip": torch.cuda.get_device_name(options.device) if on_gpu else "CPU",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "cuda": torch.version.cuda,
        "paths": [pair.lm.path, pair.rm.path],
    }
    print(f"{report['chip']}, torch {torch.__version__}; {pair.lm.path}; reward: {pair.rm.path}")
    report["bandwidth"] = bandwidth = measure_bandwidth(options.device, clock)
    print(f"\ncopying within the device: {bandwidth / 1e9:.0f} GB/s\n")
    report["steps"] = steps(pair, options, bandwidth)
    report["ratios"] = ratios(pair, options)
    if on_gpu:
        report["most_bytes"] = torch.cuda.max_memory_allocated(options.device)
    print(json.dumps(report))


def steps(pair: Pair, options: argparse.Namespace, bandwidth: float) -> dict[int, dict[str, float]]:
    """Time decode steps by their number of rows, compared with the minimum."""
    num_bytes = bytes_of_step(pair, options.length)
    turns = [
        pair.step_costs(options.length, ROWS, steps=32) for _ in range(options.repetitions + 2)
    ]
    print("| rows | step, ms | of the roofline |")
    print("|---:|---:|---:|")
    found = {}
    for index, rows in enumerate(ROWS):
        seconds = median(
            turn[index] for turn in turns[2:]
        )  # the first turns warm up and capture graphs
        found[rows] = {"ms": seconds * 1e3, "roofline": num_bytes / bandwidth / seconds}
        print(f"| {rows} | {seconds * 1e3:.2f} | {found[rows]['roofline']:.0%} |", flush=True)
    return found


def ratios(pair: Pair, options: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Time STARS, plain sampling and `generate` in turns, one prompt and many."""
    one = Setting(options.length, options.acceptance, 32, 1)
    many = Setting(options.length, options.acceptance, 32, options.prompts)
    found: dict[str, list[float]] = {}
    for turn in range(options.repetitions + 2):
        size = {"num_tokens": options.tokens, "seed": 1000 * turn}
        vanilla, _ = pair.write(one, None, **size)
        generate = pair.generate(options.length, **size)
        stars, _ = pair.write(one, "auto", **size)
        together, _ = pair.write(many, "auto", **size)
        again, _ = pair.write(one, None, **size)
        vanilla = (vanilla + again) / 2
        values = {
            "our vanilla / generate": vanilla / generate,
            "STARS / our vanilla": stars / vanilla,
            "STARS / generate": stars / generate,
            f"throughput of {options.prompts} prompts / one at a time": stars / together,
        }
        if turn >= 2:
            for name, value in values.items():
                found.setdefault(name, []).append(value)
    print("\n| ratio | 95% interval of the median |\n|---|---|")
    intervals = {name: interval(values) for name, values in found.items()}
    for name, (low, middle, high) in intervals.items():
        print(f"| {name} | {low:.2f} < {middle:.2f} < {high:.2f} |")
    return intervals


def bytes_of_step(pair: Pair, length: int) -> int:
    """Return the bytes that a decode step reads: weights, and the prompt's keys and values once."""
    model = pair.lm.model
    embedding = model.get_input_embeddings().weight
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if model.get_output_embeddings().weight is not embedding:
        weights -= embedding.nbytes
    return weights + length * pair.lm.bytes_per_token


def measure_bandwidth(device: str, clock: Callable[[Callable[[], Any]], float]) -> float:
    """Return bytes per second, read and written, of a copy within a device."""
    size = COPIED if device.startswith("cuda") else COPIED // 16
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(clock(lambda: target.copy_(source)) for _ in range(10))


def clock_of(device: str) -> Callable[[Callable[[], Any]], float]:
    """Return a function that measures wall time and waits for the device."""

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    def seconds(run: Callable[[], Any]) -> float:
        wait()
        started_s = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - started_s

    return seconds


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", choices=list(SIZES), default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--acceptance", type=float, default=0.2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=6)
    return parser.parse_args()


if __name__ == "__main__":
    main()

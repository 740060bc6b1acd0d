"""Bring the engine up on a GPU: checks, speed and a profile, in one run of about eight minutes.

    python -m benchmarks.gpu_bringup [--out bringup.json] [--device cuda] [--size 1b]
        [--speeds 1b 8b] [--minutes 8] [--only NAME ...]

The parts run one after another. A part that fails is recorded with its whole traceback, and the
next one runs. A part that does not fit into the time left is recorded as skipped. The report is one
JSON file, written anew after each part, so that a run that is cut off leaves what it has found.
The checks are in `benchmarks.gpu_checks`, the speeds in `benchmarks.gpu`.

`--device cpu --size tiny --speeds tiny` runs every part on a CPU, which shows that the script
works, and nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers

from benchmarks import gpu
from benchmarks.gpu_checks import CHECKS
from benchmarks.gpu_runs import Bench, Figures
from benchmarks.pair import Pair, Setting, Size
from stars_engine.files.disk import write_file

STEPS_PROFILED = 8
SUMMARY = ("ok", "seconds", "error", "skipped")


def main() -> None:
    options = read_options()
    transformers.utils.logging.set_verbosity_error()
    torch.backends.cuda.matmul.allow_tf32 = False
    started_s = time.monotonic()
    bench = Bench(options.device, gpu.SIZES[options.size], gpu.clock_of(options.device))
    report: dict[str, Any] = {"options": vars(options), "machine": machine(options.device)}
    report["parts"] = parts = {}
    for name, run in part_list(bench, options):
        if options.only and name not in options.only:
            continue
        left_s = 60 * options.minutes - (time.monotonic() - started_s)
        parts[name] = run_part(run) if left_s > 0 else {"skipped": "no time left"}
        summary = {key: parts[name][key] for key in SUMMARY if key in parts[name]}
        print(f"{name}: {json.dumps(summary)}", flush=True)
        write_file(options.out, json.dumps(report, indent=1, default=str), "gpu_bringup")
        bench.free()
    failed = [name for name, part in parts.items() if not part.get("ok", "skipped" in part)]
    print(json.dumps({"failed": failed, "out": str(options.out)}))


def part_list(
    bench: Bench, options: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], Figures]]]:
    """Yield the parts in order: checks first, then what costs the most time."""
    for name, check in CHECKS.items():
        yield name, lambda check=check: check(bench)
    for size in options.speeds:
        shapes = gpu.SIZES[size]
        yield f"steps, {size}", lambda shapes=shapes: steps(bench, shapes, options)
        yield f"ratios, {size}", lambda shapes=shapes: ratios(bench, shapes, options)
        yield f"generate, {size}", lambda shapes=shapes: static_generate(bench, shapes, options)
        yield f"profile, {size}", lambda shapes=shapes: profile(bench, shapes, options)


def run_part(run: Callable[[], Figures]) -> Figures:
    """Run a part; return its figures with its seconds, or its traceback."""
    started_s = time.monotonic()
    try:
        found = run()
    except Exception as error:  # noqa: BLE001 - the next part must run
        found = {
            "ok": False,
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
        }
    return {**found, "seconds": round(time.monotonic() - started_s, 1)}


def machine(device: str) -> dict[str, Any]:
    """Return the chip and the versions."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda,
    }
    if device.startswith("cuda"):
        found["chip"] = torch.cuda.get_device_name(device)
        found["memory_bytes"] = torch.cuda.mem_get_info(device)[1]
    return found


def speed_pair(bench: Bench, shapes: Size, options: argparse.Namespace) -> Pair:
    """Create a pair for speeds."""
    bench.free()
    longest = options.length + options.tokens + 64
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    return Pair(shapes, dtype, longest, bench.device, bench.clock)


def steps(bench: Bench, shapes: Size, options: argparse.Namespace) -> Figures:
    """Time decode steps against the memory bandwidth."""
    pair = speed_pair(bench, shapes, options)
    bandwidth = gpu.measure_bandwidth(bench.device, bench.clock)
    found = gpu.steps(pair, options, bandwidth)
    return {"path": pair.lm.path, "bandwidth": bandwidth, "rows": found, "ok": True}


def ratios(bench: Bench, shapes: Size, options: argparse.Namespace) -> Figures:
    """Time STARS over plain sampling and over `generate`, for two acceptances."""
    pair = speed_pair(bench, shapes, options)
    found: Figures = {}
    for acceptance in (0.2, 0.5):
        row = argparse.Namespace(**{**vars(options), "acceptance": acceptance})
        found[f"acceptance {acceptance}"] = gpu.ratios(pair, row)
    if bench.on_gpu:
        found["most_bytes"] = torch.cuda.max_memory_allocated(bench.device)
    return {**found, "ok": True}


def static_generate(bench: Bench, shapes: Size, options: argparse.Namespace) -> Figures:
    """Time `generate` with a dynamic cache, a static cache, and a compiled model."""
    pair = speed_pair(bench, shapes, options)
    ids = torch.tensor([pair.prompt(options.length, 1)], device=bench.device)
    found: Figures = {}
    for name, settings in {
        "dynamic": {},
        "static": {"cache_implementation": "static", "disable_compile": True},
        "static, compiled": {"cache_implementation": "static"},
    }.items():

        def run(count: int, settings: dict[str, Any] = settings) -> Callable[[], Any]:
            return lambda: pair.call_generate(ids, count, **settings)

        try:
            bench.clock(run(8))  # compiles
            seconds = bench.clock(run(options.tokens)) - bench.clock(run(1))
            found[name] = {"seconds_per_token": seconds / (options.tokens - 1)}
        except Exception as error:  # noqa: BLE001 - not every version compiles
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    return {**found, "ok": "error" not in found["dynamic"]}


def profile(bench: Bench, shapes: Size, options: argparse.Namespace) -> Figures:
    """Profile decode steps of eight rows: the busiest kernels, and the time between kernels."""
    pair = speed_pair(bench, shapes, options)
    pair.step_costs(options.length, [8], steps=STEPS_PROFILED)  # captures the graph
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        [step_s] = pair.step_costs(options.length, [8], steps=STEPS_PROFILED)
    kernels = [
        event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    busy_us, gaps_us, last_us = 0.0, 0.0, None
    for start, end in spans:
        busy_us += max(0.0, end - max(start, last_us or start))
        gaps_us += max(0.0, start - last_us) if last_us is not None else 0.0
        last_us = max(end, last_us or end)
    key = "self_cuda_time_total" if bench.on_gpu else "self_cpu_time_total"
    averages = profiler.key_averages()
    try:
        table = averages.table(sort_by=key, row_limit=25)
    except (AttributeError, AssertionError):  # the name of the column depends on the version
        table = averages.table(row_limit=25)
    setting = Setting(options.length, 0.2, 32, 1)
    return {
        "path": pair.lm.path,
        "step_ms": step_s * 1e3,
        "kernels": len(kernels),
        "device_busy_ms": busy_us / 1e3,
        "gaps_between_kernels_ms": gaps_us / 1e3,
        "table": table.splitlines(),
        "stars_seconds_per_token": pair.write(setting, "auto", num_tokens=64, seed=1)[0],
        "ok": True,
    }


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_bringup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = list(gpu.SIZES)
    parser.add_argument("--out", default="bringup.json", help="the report")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=sizes, default="1b", help="size of the checks' models")
    parser.add_argument("--speeds", choices=sizes, nargs="*", default=["1b", "8b"])
    parser.add_argument("--minutes", type=float, default=8.0, help="start no part after this time")
    parser.add_argument("--only", nargs="*", default=[], help="run these parts only")
    parser.add_argument("--length", type=int, default=2048, help="tokens of the prompts of speeds")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of the answers of speeds")
    parser.add_argument("--prompts", type=int, default=32, help="prompts written together")
    parser.add_argument("--repetitions", type=int, default=4)
    return parser.parse_args()


if __name__ == "__main__":
    main()

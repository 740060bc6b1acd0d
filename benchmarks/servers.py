"""STARS over two vLLM servers against plain generation by the same server and client.

    python -m benchmarks.servers --model DIR --reward DIR --model-url URL --reward-url URL

Every draft and every reward is computed. Acceptance is scripted: each draw is accepted with the
same probability, whatever its reward. One pass runs every arm once, and passes are repeated, so
that other work on the machine disturbs all arms alike. Medians over the passes are reported: kept
tokens per second over those of plain generation; with the process ids of the servers, kept tokens
per CPU second likewise; drafted tokens and reward calls; and how much of the prompts was cached.

The arm "text" works as its_hub and search-and-learn do: every candidate is a request with the whole
text so far, and nothing is cached.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from statistics import median

from benchmarks.server_arms import SEGMENT_LEN, Arm, Arms, Measured
from stars_engine import OpenAIServerModel, ServerReward


def arms(options: argparse.Namespace) -> list[Arm]:
    """Return the arms of one pass; each is compared with the plain arm before it."""
    found = []
    for case in options.cases:
        streams, prompt_len = map(int, case.split("x"))
        found.append(Arm("plain", streams, prompt_len))
        found += [
            Arm("stars", streams, prompt_len, acceptance, options.candidates)
            for acceptance in options.acceptance
        ]
        if options.text and case == options.text_case:
            found += [
                Arm("text", streams, prompt_len, acceptance, options.text)
                for acceptance in options.acceptance
            ]
    return found


def main() -> None:
    """Run the passes and print the table."""
    parser = argparse.ArgumentParser(description="STARS over servers against plain generation")
    parser.add_argument("--model", type=Path, required=True, help="directory of the tokenizer")
    parser.add_argument("--reward", type=Path, required=True, help="directory of the tokenizer")
    parser.add_argument("--model-url", required=True)
    parser.add_argument("--reward-url", required=True)
    parser.add_argument("--pids", type=int, nargs="*", default=[], help="of the servers")
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["1x50", "4x50", "16x50", "1x500", "4x500"],
        help="answers at once x tokens of the prompt",
    )
    parser.add_argument("--acceptance", type=float, nargs="+", default=[0.5, 0.2])
    parser.add_argument(
        "--candidates", type=lambda text: text if text == "auto" else int(text), default="auto"
    )
    parser.add_argument("--text", type=int, default=4, help="candidates of the arm 'text'; 0: none")
    parser.add_argument("--text-case", default="4x500", help="the case with the arm 'text'")
    parser.add_argument("--length", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--tokens", type=int, default=256, help="kept tokens of each arm, at least")
    parser.add_argument("--tokens-per-stream", type=int, default=64, help="likewise")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="start no pass that ends later"
    )
    options = parser.parse_args()
    runner = new_arms(options)
    found: dict[Arm, list[Measured]] = {}
    started_s, num_done = time.monotonic(), 0
    while num_done < options.passes:
        for arm in arms(options):
            tokens = max(options.tokens, arm.streams * options.tokens_per_stream)
            measured = runner.run(arm, tokens // 2 if arm.name == "text" else tokens)
            found.setdefault(arm, []).append(measured)
            print(f"pass {num_done + 1} {arm}: {measured.described}", flush=True)
        num_done += 1
        report(found)
        seconds = time.monotonic() - started_s
        if seconds * (num_done + 1) / num_done > options.seconds:
            break
    runner.close()


def new_arms(options: argparse.Namespace) -> Arms:
    """Connect to the servers."""
    model = OpenAIServerModel(
        base_url=options.model_url, tokenizer_name_or_path=str(options.model), timeout_s=600
    )
    reward = ServerReward(
        base_url=options.reward_url,
        tokenizer_name_or_path=str(options.reward),
        timeout_s=600,
        tolerance=1.0,
    )
    return Arms(model, reward, options.pids, options.length)


def report(found: dict[Arm, list[Measured]]) -> None:
    """Print the medians over the passes, relative to the plain arm of the same pass."""
    print(f"\n{len(next(iter(found.values())))} passes\n")
    print(
        "| streams | prompt | accepted | arm | tokens/s | of plain | least to most | of plain, "
        "per CPU second | drafted per kept token | reward calls per segment | cached | client CPU |"
    )
    print("|---:|---:|---:|---|---:|---:|---|---:|---:|---:|---:|---:|")
    plain: list[Measured] = []
    for arm, runs in found.items():
        if arm.name == "plain":
            plain = runs
        pairs = list(zip(runs, plain, strict=True))
        ratios = [run.per_second / base.per_second for run, base in pairs]
        counts = (
            f"{median(run.num_drafted for run in runs):.2f}",
            f"{median(run.num_calls * SEGMENT_LEN / run.tokens for run in runs):.2f}",
            f"{median(run.hit_rate for run in runs):.0%}",
        )
        cells = [
            f"{arm.streams} | {arm.prompt_len}",
            "" if arm.acceptance is None else f"{arm.acceptance:g}",
            arm.name,
            f"{median(run.per_second for run in runs):.1f}",
            f"{median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}",
            f"{median(run.per_cpu_second / base.per_cpu_second for run, base in pairs):.2f}",
            *(counts if arm.name != "plain" else ("", "", "")),
            f"{median(run.client_cpu_s / run.seconds for run in runs):.0%}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

"""Write answers of the pair: `python -m training.samples [--out FILE]`, seeds 0 to 19, unchosen."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from stars_engine import SamplingParams, StarsEngine, StarsResult
from stars_engine.files.disk import write_file

PROMPT = "I watched this film last night and"
NUM_SEEDS, MAX_TOKENS = 20, 64
HEAD = f"""# Samples

What the embedded pair makes of "{PROMPT}", {MAX_TOKENS} tokens at most, seeds 0 to {NUM_SEEDS - 1},
none left out. For each seed plain sampling, then STARS with the thresholds of the package; in
brackets the reward (log-odds of a positive review by the pair's own reward model).
Written by `python -m training.samples`.
"""


def main() -> None:
    """Generate and write the file."""
    parser = argparse.ArgumentParser(prog="python -m training.samples", description=__doc__)
    default = Path(__file__).parent.parent / "stars_engine" / "embedded" / "SAMPLES.md"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [HEAD]
    with StarsEngine() as engine:
        for seed in range(NUM_SEEDS):
            sampling = SamplingParams(seed=seed, max_tokens=MAX_TOKENS)
            [plain] = engine.vanilla(PROMPT, sampling=sampling)
            [aligned] = engine.generate(PROMPT, sampling=sampling)
            lines.append(f"{seed}. {_shown(plain)}\n\n   **STARS** {_shown(aligned)}\n")
    write_file(args.out, "\n".join(lines), "samples")


def _shown(result: StarsResult) -> str:
    text = " ".join(result.text.split())
    return f"[{result.reward or 0.0:+.1f}] {text}"


if __name__ == "__main__":
    main()

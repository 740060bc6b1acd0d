"""Train a reward of the second axis: `python -m training.safety toxicity --shared DIR --out DIR`.

Each command trains one reward from the weights of a language model, `--lm`, and measures it on rows
that it never saw, compared with a linear baseline. It writes weights and `metrics.json` to `--out`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from training.__main__ import EMBEDDED
from training.records import record, say
from training.safety import harmlessness, process, toxicity
from training.safety.harmlessness_data import folds, read_pairs
from training.safety.toxicity_data import read_rows, split_rows

SEED = 20251103
# Fold 0 is reserved for choosing settings, so it is never counted.
TEST_FOLDS = (1, 2, 3, 4)


def main() -> None:
    """Run one command and record its measurements."""
    parser = argparse.ArgumentParser(prog="python -m training.safety", description=__doc__)
    parser.add_argument("command", choices=["toxicity", "harmlessness"])
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/ in it")
    parser.add_argument("--lm", type=Path, default=EMBEDDED / "lm", help="a Llama to start from")
    parser.add_argument("--out", type=Path, required=True, help="where the reward is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    make = make_toxicity if args.command == "toxicity" else make_harmlessness
    figures = make(args.shared / "data", args.lm, args.out)
    record(
        args.out, args.command, {**figures, "seed": SEED, "cpu_s": time.process_time() - started}
    )


def make_toxicity(data: Path, lm: Path, out: Path) -> dict[str, Any]:
    """Train the toxicity reward; return its figures, the baseline's and the judge's."""
    rows = read_rows(data / "toxicity" / "realtoxicityprompts.jsonl")
    return toxicity.make(split_rows(rows, seed=SEED), lm, out, seed=SEED, log=say)


def make_harmlessness(data: Path, lm: Path, out: Path) -> dict[str, Any]:
    """Cross-validate the harmlessness reward, then train the final one on all pairs."""
    pairs = read_pairs(data / "hh-rlhf" / "harmless-base.jsonl.gz")
    figures = harmlessness.cross_validate(
        folds(pairs, seed=SEED), lm, test_folds=TEST_FOLDS, seed=SEED, log=say
    )
    model, tokenizer = harmlessness.fitted(pairs, lm, seed=SEED, log=say)
    process.save(model, tokenizer, out)
    return {"parameters": model.num_parameters(), **figures}


if __name__ == "__main__":
    main()

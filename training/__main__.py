"""Make the embedded pair: `python -m training --imdb DIR [--out DIR] [--stage ...]`.

Stages: `lm` (tokenizer and language model). Fixed seeds and step counts; a run that was cut off goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from training.data import encode_rows, training_reviews
from training.lm import as_pretrained, bits_per_byte, model_config, save_lm, train_lm
from training.lm import train_tokenizer as fit_tokenizer
from training.runs import Plan

EMBEDDED = Path(__file__).parent.parent / "stars_engine" / "embedded"
SEED = 20251103
LM_PLAN = Plan(num_steps=2100, lr=0.010, micro_tokens=2048, accumulate=4, seed=SEED)
NUM_TOKENIZER_REVIEWS = 15_000


def main():
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--imdb", type=Path, required=True, help="folder of the *.jsonl.gz files")
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="where the pair is written")
    parser.add_argument("--checkpoints", type=Path, required=True)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    args.checkpoints.mkdir(parents=True, exist_ok=True)
    texts = training_reviews(args.imdb)
    random.Random(SEED).shuffle(texts)
    tokenizer = fit_tokenizer(texts[:NUM_TOKENIZER_REVIEWS])
    config = model_config(tokenizer)
    ends = {"bos_id": config.bos_token_id, "eos_id": config.eos_token_id}
    rows = encode_rows(texts, tokenizer, **ends)
    model, seconds = train_lm(
        rows, config, LM_PLAN, compiled=args.compile, checkpoint=args.checkpoints / "lm.pt", log=say
    )
    save_lm(model, as_pretrained(tokenizer), args.out / "lm")


def say(line: str) -> None:
    """Print progress at once, also into a file."""
    print(line, flush=True)


if __name__ == "__main__":
    main()

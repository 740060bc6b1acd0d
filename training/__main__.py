"""Make the embedded pair: `python -m training --imdb DIR [--out DIR] [--stage ...]`.

Stages: `lm` (tokenizer and language model), `reward`, `schedule` (thresholds, from pilot answers of
the finished pair). One CPU thread, fixed seeds, fixed step counts: under 20 minutes in all.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from training.data import encode_rows, read_reviews
from training.lm import as_pretrained, bits_per_byte, model_config, save_lm, train_lm
from training.lm import train_tokenizer as fit_tokenizer
from training.reward import prefix_accuracy, save_reward, train_reward

EMBEDDED = Path(__file__).parent.parent / "stars_engine" / "embedded"
SEED = 20251103
BATCH_SIZE = 8
LM_STEPS, LM_LR, LM_ROW_LEN = 1450, 0.010, 256
REWARD_STEPS, REWARD_LR, REWARD_ROW_LEN = 1000, 0.003, 192
NUM_TOKENIZER_REVIEWS = 15_000
NUM_DEV_REVIEWS = 1_000  # per label


def main() -> None:
    """Run the chosen stages and record what they measured."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--imdb", type=Path, required=True, help="folder of the *.jsonl.gz files")
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="where the pair is written")
    parser.add_argument("--stage", choices=["all", "lm", "reward", "schedule"], default="all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    if args.stage in ("all", "lm"):
        record(args.out, "lm", make_lm(args.imdb, args.out / "lm"))
    if args.stage in ("all", "reward"):
        record(args.out, "reward", make_reward(args.imdb, args.out / "lm", args.out / "reward"))
    if args.stage in ("all", "schedule"):
        from training.schedule import make_schedule

        record(args.out, "schedule", make_schedule(args.imdb, args.out))


def make_lm(imdb: Path, directory: Path) -> dict[str, Any]:
    """Train tokenizer and language model; return held-out figures."""
    started = time.process_time()
    texts = [
        text
        for name in ("train_pos", "train_neg", "train_unsup")
        for text in read_reviews(imdb / f"{name}.jsonl.gz")
    ]
    random.Random(SEED).shuffle(texts)
    tokenizer = fit_tokenizer(texts[:NUM_TOKENIZER_REVIEWS])
    config = model_config(tokenizer)
    ends = {"bos_id": config.bos_token_id, "eos_id": config.eos_token_id}
    rows = encode_rows(texts[: LM_STEPS * BATCH_SIZE + 400], tokenizer, row_len=LM_ROW_LEN, **ends)
    model = train_lm(
        rows, config, num_steps=LM_STEPS, batch_size=BATCH_SIZE, lr=LM_LR, seed=SEED, log=say
    )
    dev = [text[:800] for text in read_reviews(imdb / "dev_pos.jsonl.gz")[:100]]
    dev += [text[:800] for text in read_reviews(imdb / "dev_neg.jsonl.gz")[:100]]
    dev_rows = encode_rows(dev, tokenizer, row_len=10_000, **ends)
    figures = {
        "parameters": model.num_parameters(),
        "tokens": sum(len(row) for row in rows),
        "dev_bits_per_byte": bits_per_byte(model, dev_rows, sum(len(t.encode()) for t in dev)),
        "cpu_s": time.process_time() - started,
    }
    save_lm(model, as_pretrained(tokenizer), directory)
    return figures


def make_reward(imdb: Path, lm_directory: Path, directory: Path) -> dict[str, Any]:
    """Train the reward model; return accuracy on held-out reviews by prefix length."""
    started = time.process_time()
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(lm_directory)
    language_model = LlamaForCausalLM.from_pretrained(lm_directory, dtype=torch.float32)

    def labelled(split: str, limit: int | None) -> tuple[list[list[int]], list[int]]:
        rows: list[list[int]] = []
        labels: list[int] = []
        for label, name in ((1, "pos"), (0, "neg")):
            texts = read_reviews(imdb / f"{split}_{name}.jsonl.gz")[:limit]
            rows += encode_rows(
                texts,
                tokenizer.backend_tokenizer,
                bos_id=tokenizer.bos_token_id,
                eos_id=tokenizer.eos_token_id,
                row_len=REWARD_ROW_LEN,
            )
            labels += [label] * len(texts)
        return rows, labels

    rows, labels = labelled("train", None)
    model = train_reward(
        language_model,
        rows,
        labels,
        num_steps=REWARD_STEPS,
        batch_size=BATCH_SIZE,
        lr=REWARD_LR,
        seed=SEED,
        log=say,
    )
    figures = {
        "parameters": model.num_parameters(),
        "dev_accuracy_by_tokens": prefix_accuracy(model, *labelled("dev", NUM_DEV_REVIEWS)),
        "cpu_s": time.process_time() - started,
    }
    save_reward(model, tokenizer, directory)
    return figures


def record(out: Path, stage: str, figures: dict[str, Any]) -> None:
    """Merge one stage's figures into `metrics.json`."""
    path = out / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    metrics[stage] = figures
    path.write_text(json.dumps(metrics, indent=2) + "\n")
    say(f"{stage}: {json.dumps(figures)}")


def say(line: str) -> None:
    """Print progress at once, also into a file."""
    print(line, flush=True)


if __name__ == "__main__":
    main()

"""Make the embedded pair, or one stage of it.

    python -m training --imdb DIR [--stage lm|lm-report|teacher|reward] [--out DIR]

`lm`: tokenizer and language model. `lm-report`: its bits per byte, beside a 5-gram model and the
models of `--beside`. `teacher`: a reward model from the language model's weights, trained on
labelled reviews, and its verdicts on reviews without a label. `reward`: the reward model, from the
language model's weights again, trained on both. Thresholds are chosen and written by
`benchmarks/embedded_pair.py`. Seeds and step counts are fixed; a run that was cut off goes on from
its checkpoint. What is measured goes to `metrics.json`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from training.data import encode_rows, read_reviews, training_reviews
from training.lm import as_pretrained, model_config, save_lm, train_lm
from training.lm import train_tokenizer as fit_tokenizer
from training.lm_report import compare
from training.records import record, say
from training.reward import (
    TEACHER_WEIGHTS,
    WEIGHTS,
    balanced,
    save_reward,
    train_reward,
    verdicts,
    windows,
)
from training.runs import Plan
from training.split import labelled_rows

EMBEDDED = Path(__file__).parent.parent / "stars_engine" / "embedded"
SEED = 20251103
NUM_TOKENIZER_REVIEWS = 15_000
LM_PLAN = Plan(num_steps=2100, lr=0.010, micro_tokens=2048, accumulate=4, seed=SEED)
TEACHER_PLAN = Plan(num_steps=1650, lr=0.003, micro_tokens=2048, accumulate=4, seed=SEED)
REWARD_PLAN = Plan(num_steps=1700, lr=0.003, micro_tokens=2048, accumulate=4, seed=SEED + 1)
NUM_UNLABELLED = 30_000  # reviews that the teacher reads


def main() -> None:
    """Run the chosen stages and record what they measured."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--imdb", type=Path, required=True, help="folder of the *.jsonl.gz files")
    parser.add_argument("--out", type=Path, default=EMBEDDED, help="where the pair is written")
    parser.add_argument("--stage", choices=["all", *_STAGES], default="all")
    parser.add_argument(
        "--checkpoints", type=Path, help="folder to go on from and to write to; default: none"
    )
    parser.add_argument(
        "--beside", type=Path, nargs="*", default=[], help="other language models for lm-report"
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile; needs a C++ compiler"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the processor; default: 1")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.set_verbosity_error()
    if args.checkpoints is not None:
        args.checkpoints.mkdir(parents=True, exist_ok=True)
    for name, stage in _STAGES.items():
        if args.stage in ("all", name):
            record(args.out, name, stage(args))


def _make_lm(args: argparse.Namespace) -> dict[str, Any]:
    texts = training_reviews(args.imdb)
    random.Random(SEED).shuffle(texts)
    tokenizer = fit_tokenizer(texts[:NUM_TOKENIZER_REVIEWS])
    config = model_config(tokenizer)
    pretrained = as_pretrained(tokenizer)
    model, seconds = train_lm(
        _encode(texts, pretrained),
        config,
        LM_PLAN,
        **_running(args, "lm"),
    )
    figures = {**_plan(LM_PLAN), "parameters": model.num_parameters(), "seconds": seconds}
    save_lm(model, pretrained, args.out / "lm")
    return figures


def _report_lm(args: argparse.Namespace) -> dict[str, Any]:
    dev, _ = labelled_rows(args.imdb, "dev")
    return compare([args.out / "lm", *args.beside], training_reviews(args.imdb), dev)


def _make_teacher(args: argparse.Namespace) -> dict[str, Any]:
    tokenizer, language_model = _load_lm(args.out / "lm")
    rows, labels = _labelled(args, tokenizer)
    model, seconds = train_reward(
        language_model,
        rows,
        labels,
        TEACHER_PLAN,
        TEACHER_WEIGHTS,
        **_running(args, "teacher"),
    )
    found = verdicts(model, _unlabelled(args, tokenizer))
    np.save(_verdicts_file(args), found)
    figures = {"reviews": len(rows), "read": len(found), "seconds": seconds}
    return {**_plan(TEACHER_PLAN), **figures}


def _make_reward(args: argparse.Namespace) -> dict[str, Any]:
    tokenizer, language_model = _load_lm(args.out / "lm")
    labelled, labels = _labelled(args, tokenizer)
    found = np.load(_verdicts_file(args))
    unlabelled = _unlabelled(args, tokenizer)
    told = [(unlabelled[index], float(found[index])) for index in balanced(found)]
    rows, targets = [], []
    for row, target in [*zip(labelled, labels, strict=True), *told]:
        for window in windows(row):
            rows.append(window)
            targets.append(target)
    model, seconds = train_reward(
        language_model,
        rows,
        targets,
        REWARD_PLAN,
        WEIGHTS,
        **_running(args, "reward"),
    )
    save_reward(model, tokenizer, args.out / "reward")
    figures = {"parameters": model.num_parameters(), "rows": len(rows), "seconds": seconds}
    return {**_plan(REWARD_PLAN), **figures, "reviews": len(labelled) + len(told)}


def _load_lm(directory: Path) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(directory)
    return tokenizer, LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)


def _labelled(
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[list[int]], list[float]]:
    texts, labels = labelled_rows(args.imdb, "guide")
    return _encode(texts, tokenizer), [float(label) for label in labels]


def _unlabelled(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    texts = read_reviews(args.imdb / "train_unsup.jsonl.gz")
    return _encode(texts[:NUM_UNLABELLED], tokenizer)


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    ends = {"bos_id": tokenizer.bos_token_id, "eos_id": tokenizer.eos_token_id}
    return encode_rows(texts, tokenizer.backend_tokenizer, **ends)


def _verdicts_file(args: argparse.Namespace) -> Path:
    directory: Path = args.checkpoints or args.out
    return directory / "verdicts.npy"


_STAGES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "lm": _make_lm,
    "lm-report": _report_lm,
    "teacher": _make_teacher,
    "reward": _make_reward,
}


def _running(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return what the command line says of every training run."""
    checkpoint = None if args.checkpoints is None else args.checkpoints / f"{name}.pt"
    return {"compiled": args.compile, "checkpoint": checkpoint, "log": say}


def _plan(plan: Plan) -> dict[str, Any]:
    return {"steps": plan.num_steps, "tokens_per_step": plan.micro_tokens * plan.accumulate}


if __name__ == "__main__":
    main()

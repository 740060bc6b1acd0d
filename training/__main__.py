"""Make the embedded pair, or one stage of it.

    python -m training --imdb DIR [--stage lm|lm-report|reward] [--out DIR]

`lm`: tokenizer and language model. `lm-report`: its bits per byte, beside a 5-gram model and the
models of `--beside`. `reward`: the reward model, from the language model's weights. Thresholds are
chosen and written by `benchmarks/embedded_pair.py`. Seeds and step counts are fixed; a run that was
cut off goes on from its checkpoint.
What is measured goes to `metrics.json`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from training.data import encode_rows, training_reviews
from training.lm import as_pretrained, model_config, save_lm, train_lm
from training.lm import train_tokenizer as fit_tokenizer
from training.lm_report import compare
from training.records import record, say
from training.reward import save_reward, train_reward
from training.runs import Plan
from training.split import labelled_rows

EMBEDDED = Path(__file__).parent.parent / "stars_engine" / "embedded"
SEED = 20251103
NUM_TOKENIZER_REVIEWS = 15_000
LM_PLAN = Plan(num_steps=2100, lr=0.010, micro_tokens=2048, accumulate=4, seed=SEED)
REWARD_PLAN = Plan(num_steps=1650, lr=0.003, micro_tokens=2048, accumulate=4, seed=SEED)


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
    ends = {"bos_id": config.bos_token_id, "eos_id": config.eos_token_id}
    rows = encode_rows(texts, tokenizer, **ends)
    model, seconds = train_lm(
        rows,
        config,
        LM_PLAN,
        compiled=args.compile,
        checkpoint=_checkpoint(args, "lm"),
        log=say,
    )
    figures = {**_plan(LM_PLAN), "parameters": model.num_parameters(), "seconds": seconds}
    save_lm(model, as_pretrained(tokenizer), args.out / "lm")
    return figures


def _report_lm(args: argparse.Namespace) -> dict[str, Any]:
    dev, _ = labelled_rows(args.imdb, "dev")
    return compare([args.out / "lm", *args.beside], training_reviews(args.imdb), dev)


def _make_reward(args: argparse.Namespace) -> dict[str, Any]:
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(args.out / "lm")
    language_model = LlamaForCausalLM.from_pretrained(args.out / "lm", dtype=torch.float32)
    texts, labels = labelled_rows(args.imdb, "guide")
    ends = {"bos_id": tokenizer.bos_token_id, "eos_id": tokenizer.eos_token_id}
    rows = encode_rows(texts, tokenizer.backend_tokenizer, **ends)
    model, seconds = train_reward(
        language_model,
        rows,
        [float(label) for label in labels],
        REWARD_PLAN,
        compiled=args.compile,
        checkpoint=_checkpoint(args, "reward"),
        log=say,
    )
    figures = {
        **_plan(REWARD_PLAN),
        "parameters": model.num_parameters(),
        "reviews": len(rows),
        "seconds": seconds,
    }
    save_reward(model, tokenizer, args.out / "reward")
    return figures


_STAGES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "lm": _make_lm,
    "lm-report": _report_lm,
    "reward": _make_reward,
}


def _checkpoint(args: argparse.Namespace, name: str) -> Path | None:
    return None if args.checkpoints is None else args.checkpoints / f"{name}.pt"


def _plan(plan: Plan) -> dict[str, Any]:
    return {"steps": plan.num_steps, "tokens_per_step": plan.micro_tokens * plan.accumulate}


if __name__ == "__main__":
    main()

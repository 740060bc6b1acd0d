"""Tune a language model by SFT and by DPO, to compare both with STARS.

    python -m training.tuned --prompts train.jsonl --out tuned    (the embedded pair)
    stars compare --preset checkpoints                            (reads tuned/sft and tuned/dpo)

Both learn from the same reward as STARS: the model samples answers to training prompts, the guide
ranks them, and the best and worst answer of each prompt are a preference pair. SFT trains on the
best answers, DPO (Rafailov et al. 2023) on the pairs, both from the plain model, with TRL. Prompts
of an evaluation must not be among the training prompts. `pairs.jsonl` is kept: an interrupted run
resumes after it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stars_engine import AlignParams, NoSchedule, SamplingParams, StarsConfig, StarsEngine
from stars_engine.config.models import EMBEDDED_LM
from stars_engine.evaluation.prompts import PromptSet, read_halves
from stars_engine.files.disk import write_file

Pair = dict[str, str]  # prompt, chosen, rejected

_BATCH = 64


def preference_pairs(
    config: StarsConfig, prompts: Sequence[str], *, samples: int, sampling: SamplingParams
) -> list[Pair]:
    """Return the best and worst of `samples` plain answers to each prompt, by the guide."""
    pairs = []
    with StarsEngine(config) as engine:
        for start in range(0, len(prompts), _BATCH):
            some = list(prompts[start : start + _BATCH])
            results = engine.vanilla(some, sampling=sampling.replace(n=samples))
            for index, prompt in enumerate(some):
                own = [r for r in results if r.prompt_index == index and r.reward is not None]
                own.sort(key=lambda result: float(result.reward or 0.0))
                if len(own) > 1 and own[-1].text.strip() and own[0].text != own[-1].text:
                    pairs.append(
                        {"prompt": prompt, "chosen": own[-1].text, "rejected": own[0].text}
                    )
            print(f"{start + len(some)} of {len(prompts)} prompts", flush=True)
    return pairs


def train(kind: str, model: str, pairs: Sequence[Pair], out: Path, **settings: Any) -> None:
    """Train one checkpoint with TRL and write it.

    Args:
        kind: "sft" or "dpo".
        model: Directory or hub name of the plain model.
        pairs: Preference pairs; SFT uses the chosen answers.
        out: Directory of the checkpoint.
        settings: Other settings of `SFTConfig` or `DPOConfig`.
    """
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    common = {
        "output_dir": str(out / "runs"),
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 20,
        "per_device_train_batch_size": 16,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
        "gradient_checkpointing": False,
        "bf16": False,
        "seed": 11,
        **settings,
    }
    trainer: Any
    if kind == "sft":
        rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
        trainer = SFTTrainer(
            model=network,
            args=SFTConfig(**common),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    else:
        trainer = DPOTrainer(
            model=network,
            args=DPOConfig(**common),
            train_dataset=Dataset.from_list(list(pairs)),
            processing_class=tokenizer,
        )
    trainer.train()
    trainer.model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Make pairs, train both checkpoints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True, help=".jsonl, .csv or .txt file")
    parser.add_argument("--column", default="prompt", help="its column of prompts")
    parser.add_argument("--num", type=int, default=600, help="training prompts")
    parser.add_argument("--config", type=Path, help="models and guide; default: the embedded pair")
    parser.add_argument("--samples", type=int, default=8, help="plain answers per prompt")
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--epochs", type=float, default=3.0, help="passes over the pairs")
    parser.add_argument("--sft-rate", type=float, default=2e-4, help="learning rate of SFT")
    parser.add_argument("--dpo-rate", type=float, default=5e-5, help="learning rate of DPO")
    parser.add_argument("--beta", type=float, default=0.1, help="DPO's beta")
    parser.add_argument("--out", type=Path, required=True, help="folder of pairs and checkpoints")
    args = parser.parse_args()
    config = StarsConfig() if args.config is None else StarsConfig.from_file(args.config)
    config = config.replace(
        model=config.model, reward=config.reward, align=AlignParams(schedule=NoSchedule())
    )
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "pairs.jsonl"
    if not kept.exists():
        source = PromptSet(file=str(args.prompts), column=args.column, tuning=0, fresh=args.num)
        sampling = SamplingParams(max_tokens=args.max_tokens, seed=5)
        pairs = preference_pairs(
            config, read_halves(source).fresh, samples=args.samples, sampling=sampling
        )
        lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
        write_file(kept, "\n".join(lines) + "\n", "pairs")
    pairs = [json.loads(line) for line in kept.read_text(encoding="utf-8").split("\n") if line]
    model = str(config.model.name_or_path)
    if model == EMBEDDED_LM:
        import stars_engine

        model = str(Path(stars_engine.__file__).parent / "embedded" / "lm")
    for kind, own in (
        ("sft", {"learning_rate": args.sft_rate}),
        ("dpo", {"learning_rate": args.dpo_rate, "beta": args.beta}),
    ):
        out = args.out / kind
        if not (out / "config.json").exists():
            train(kind, model, pairs, out, num_train_epochs=args.epochs, **own)


if __name__ == "__main__":
    main()

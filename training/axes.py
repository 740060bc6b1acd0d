"""Prepare a comparison of helpfulness or harmlessness on an instruct model, from preference pairs.

    python -m training.axes helpful --shared DIR --out helpful
    STARS_AXIS=helpful stars compare --preset best-of-n --model INSTRUCT \
        --reward training.axes:guide --judge held-out=training.axes:judge \
        --prompts helpful/prompts.jsonl --in-order --tuning 96 --fresh 200 --max-tokens 64

Prompts are split by a hash: guide, judge and evaluation share none. Guide and judge are linear
models on words of the answer, fitted to the pairs of their prompts. The guide is a cheap stand-in:
give a reward model of your own as --reward. `figures.json` says how many held-out pairs each ranks
right; near 0.5, it judges nothing.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from stars_engine.files.disk import write_file
from training.linear import LinearClassifier

Axis = Literal["helpful", "harmless"]
Part = Literal["guide", "judge", "evaluation"]

STRENGTH = 3.0
_SHARES = {"guide": 0.5, "judge": 0.8, "evaluation": 1.0}  # upper ends
_LAST_TURN = "\n\nAssistant:"
_FIRST_TURN = re.compile(r"\s*Human:\s*(.*?)\s*(?:\n\nAssistant:|\Z)", re.DOTALL)


class Pair(NamedTuple):
    """Two answers to one prompt, of which people or a model preferred the first."""

    prompt: str
    chosen: str
    rejected: str


def read_pairs(shared: Path, axis: Axis) -> list[Pair]:
    """Return the pairs of an axis: AlpacaEval's verdicts, or HH-RLHF's harmless-base."""
    data = shared / "data"
    if axis == "helpful":
        rows = _rows(data / "preferences" / "alpaca_eval_gpt4.jsonl.gz")
        return [Pair(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    pairs = []
    for row in _rows(data / "hh-rlhf" / "harmless-base.jsonl.gz"):
        found = _FIRST_TURN.match(row["chosen"])
        answers = [row[name].rpartition(_LAST_TURN)[2].strip() for name in ("chosen", "rejected")]
        if found and all(answers) and answers[0] != answers[1]:
            pairs.append(Pair(found[1], *answers))
    return pairs


def part_of(prompt: str) -> Part:
    """Return the part of a prompt, which depends only on its text."""
    digest = hashlib.blake2b(prompt.strip().lower().encode(), digest_size=8).digest()
    chance = int.from_bytes(digest) / 2**64
    return next(part for part in get_args(Part) if chance < _SHARES[part])


def fit(pairs: Sequence[Pair]) -> LinearClassifier:
    """Fit a linear model that tells chosen from rejected answers."""
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    return LinearClassifier.fit(texts, [1, 0] * len(pairs), strength=STRENGTH)


def accuracy(model: LinearClassifier, pairs: Sequence[Pair]) -> float:
    """Return the share of pairs that a model ranks right; ties count half."""
    chosen = model.logits([pair.chosen for pair in pairs])
    rejected = model.logits([pair.rejected for pair in pairs])
    return float(((chosen > rejected) + 0.5 * (chosen == rejected)).mean())


def guide(_prompt: str, completion: str) -> float:
    """Return the guide's log-odds of an answer; its folder is `STARS_AXIS`."""
    return float(_model("guide").logits([completion])[0])


def judge(_prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return the judge's log-odds of answers; its folder is `STARS_AXIS`."""
    return [float(value) for value in _model("judge").logits(list(completions))]


@cache
def _model(role: str) -> LinearClassifier:
    return LinearClassifier.load(Path(os.environ.get("STARS_AXIS", ".")) / f"{role}.npz")


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    """Fit guide and judge, write them and the prompts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("axis", choices=get_args(Axis))
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/ in it")
    parser.add_argument("--out", type=Path, required=True, help="folder of models and prompts")
    args = parser.parse_args()
    parts: dict[str, list[Pair]] = {part: [] for part in get_args(Part)}
    for pair in read_pairs(args.shared, args.axis):
        parts[part_of(pair.prompt)].append(pair)
    args.out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"pairs": {part: len(pairs) for part, pairs in parts.items()}}
    for role in ("guide", "judge"):
        model = fit(parts[role])
        model.save(args.out / f"{role}.npz")
        figures[f"{role}_accuracy"] = accuracy(model, parts["evaluation"])
    prompts = dict.fromkeys(pair.prompt for pair in parts["evaluation"])
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    write_file(args.out / "prompts.jsonl", "\n".join(lines) + "\n", "prompts")
    figures["prompts"] = len(prompts)
    write_file(args.out / "figures.json", json.dumps(figures, indent=2) + "\n", "figures")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

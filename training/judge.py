"""Train the judge of evaluations: `python -m training.judge --imdb DIR --out DIR [--sst2 DIR]`.

The judge tells positive from negative text and never guides. It has nothing in common with the
guide: a linear model on words and pairs of words (naive-Bayes features, Wang and Manning 2012)
instead of a transformer, words instead of the pair's tokens, and other reviews, those of
`split.labelled_rows(imdb, "judge")`. It also learns from excerpts of 64 and 128 words, the length
that it judges, and, with `--sst2`, from single sentences. Its log-odds are calibrated on an eighth
of its reviews that it has not seen.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from stars_engine.files.disk import write_file
from training.linear import LinearClassifier
from training.pieces import beginning, with_excerpts
from training.split import labelled_rows

SEED = 20251103
EXCERPT_WORDS = (64, 128)
STRENGTH = 10.0
_FILE, _FIGURES = "judge.npz", "judge.json"


def load_judge(directory: Path) -> LinearClassifier:
    """Return a trained judge; its `logits` are log-odds that a text is positive.

    Raises:
        FileNotFoundError: The directory has no judge.
    """
    if not (directory / _FILE).exists():
        raise FileNotFoundError(
            f"no judge in {directory}. Hint: python -m training.judge --imdb DIR --out {directory}"
        )
    return LinearClassifier.load(directory / _FILE)


@cache
def _load_judge(directory: Path) -> LinearClassifier:
    return load_judge(directory)


def train_judge(
    texts: Sequence[str], labels: Sequence[int], sentences: Sequence[tuple[str, int]] = ()
) -> LinearClassifier:
    """Fit on seven eighths of the reviews and on sentences; calibrate on excerpts of the rest."""
    held = len(texts) // 8
    pieces, piece_labels = with_excerpts(texts[held:], labels[held:], EXCERPT_WORDS, seed=SEED)
    pieces += [sentence for sentence, _ in sentences]
    piece_labels += [label for _, label in sentences]
    judge = LinearClassifier.fit(pieces, piece_labels, strength=STRENGTH, bayes=True)
    others, other_labels = with_excerpts(texts[:held], labels[:held], EXCERPT_WORDS, seed=SEED)
    return judge.calibrated(others[held:], other_labels[held:])


def log_odds(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return log-odds that prompt and completion, as one text, are positive.

    A judge for evaluations: `{kind: function, function: "training.judge:log_odds", batched: true}`.
    The judge is that in the folder `STARS_JUDGE`.

    Raises:
        FileNotFoundError: The folder has no judge.
    """
    judge = _load_judge(Path(os.environ.get("STARS_JUDGE", "judge")))
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return [float(value) for value in judge.logits(texts)]


def judge_figures(
    judge: LinearClassifier, texts: Sequence[str], labels: Sequence[int]
) -> dict[str, Any]:
    """Return accuracy and log loss (nats) on whole reviews, beginnings and excerpts."""
    tasks: dict[str, tuple[Sequence[str], Sequence[int]]] = {"whole reviews": (texts, labels)}
    for words in EXCERPT_WORDS:
        beginnings = [beginning(text, words) for text in texts]
        tasks[f"first {words} words"] = beginnings, labels
        pieces, piece_labels = with_excerpts(texts, labels, (words,), seed=SEED)
        tasks[f"excerpts of {words} words"] = pieces[len(texts) :], piece_labels[len(texts) :]
    figures = {}
    for name, (task, truth) in tasks.items():
        signed = judge.logits(task) * (2 * np.asarray(truth) - 1)
        figures[name] = {
            "texts": len(task),
            "accuracy": float((signed > 0).mean()),
            "log_loss": float(np.logaddexp(0, -signed).mean()),
        }
    return figures


def read_sst2(directory: Path) -> list[tuple[str, int]]:
    """Return the training sentences of SST-2 (Socher et al. 2013) and their labels."""
    lines = (directory / "train.tsv").read_text(encoding="utf-8").splitlines()
    rows = (line.rsplit("\t", 1) for line in lines)
    return [(text, int(label)) for text, label in rows if label in ("0", "1")]


def main() -> None:
    """Train, measure on dev reviews, write both."""
    parser = argparse.ArgumentParser(prog="python -m training.judge", description=__doc__)
    parser.add_argument("--imdb", type=Path, required=True, help="folder of the *.jsonl.gz files")
    parser.add_argument("--sst2", type=Path, help="folder of SST-2's train.tsv")
    parser.add_argument("--out", type=Path, required=True, help="where the judge is written")
    args = parser.parse_args()
    texts, labels = labelled_rows(args.imdb, "judge")
    sentences = read_sst2(args.sst2) if args.sst2 else []
    judge = train_judge(texts, labels, sentences)
    figures = {
        "reviews": len(texts),
        "sentences": len(sentences),
        "seed": SEED,
        "dev": judge_figures(judge, *labelled_rows(args.imdb, "dev")),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    judge.save(args.out / _FILE)
    write_file(args.out / _FIGURES, json.dumps(figures, indent=2) + "\n", "figures")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

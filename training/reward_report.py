"""Measure the reward model on unfinished text, compared with simpler and earlier models.

    python -m training.reward_report --imdb DIR --out DIR [--reward DIR] [--beside DIR ...]

All models judge the same reviews, those of `split.labelled_rows(imdb, "dev")`, cut after so many
words. The linear baseline is a bag of words and pairs of words, fitted to the same reviews as the
reward model (`"guide"`), once whole and once cut in all these ways. Its row has the better of the
two at each length, chosen by these very figures, in its favour. Fits and results stay in `--out`
and are used again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from stars_engine.files.disk import write_file
from training.linear import LinearClassifier
from training.pieces import beginning
from training.prefixes import (
    Floats,
    accuracy,
    calibration,
    lead,
    rank_correlations,
    read_prefixes,
    shown,
)
from training.records import save_array
from training.split import labelled_rows

EMBEDDED_REWARD = Path(__file__).parent.parent / "stars_engine" / "embedded" / "reward"
PREFIX_WORDS = (16, 32, 64, 128, None)
SEGMENT_WORDS = 16
BORDERS = tuple(range(SEGMENT_WORDS, 129, SEGMENT_WORDS))
STRENGTHS = {"whole reviews": 10.0, "beginnings": 4.0}
_LENGTHS = (*BORDERS, None)


def main() -> None:
    """Read dev reviews by every model; print tables, write figures."""
    parser = argparse.ArgumentParser(prog="python -m training.reward_report", description=__doc__)
    parser.add_argument("--imdb", type=Path, required=True, help="folder of the *.jsonl.gz files")
    parser.add_argument("--out", type=Path, required=True, help="where figures are written")
    parser.add_argument("--reward", type=Path, default=EMBEDDED_REWARD, help="the reward model")
    parser.add_argument(
        "--beside", type=Path, nargs="*", default=[], help="other causal classifiers, one logit"
    )
    parser.add_argument("--reviews", type=int, help="number of dev reviews; default: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    args.out.mkdir(parents=True, exist_ok=True)
    texts, labels = labelled_rows(args.imdb, "dev")
    texts, labels = texts[: args.reviews], labels[: args.reviews]
    logits = {
        path.name if path != args.reward else "reward model": kept(
            args.out, _of_files(path), texts, lambda path=path: read_prefixes(path, texts, _LENGTHS)
        )
        for path in (args.reward, *args.beside)
    }
    for name, strength in STRENGTHS.items():
        logits[f"linear, fitted to {name}"] = kept(
            args.out,
            [name, str(strength)],
            texts,
            lambda name=name: read_linear(args.imdb, name, texts),
        )
    figures = report(logits, texts, labels)
    write_file(args.out / "reward_report.json", json.dumps(figures, indent=2) + "\n", "report")
    print(tables(figures))


def report(
    logits: dict[str, Floats], texts: Sequence[str], labels: Sequence[int]
) -> dict[str, Any]:
    """Return all figures; the others are compared with the first model of `logits`.

    Args:
        logits: By model, `(texts, 9)`: after 16, 32, ... 128 words, and at the end.
        texts: The texts.
        labels: 1 for positive, 0 for negative.
    """
    columns = [_LENGTHS.index(length) for length in PREFIX_WORDS]
    right = {name: accuracy(values[:, columns], labels) for name, values in logits.items()}
    linear = [name for name in right if name.startswith("linear")]
    if linear:
        right["linear, the better"] = np.stack(
            [
                max((right[name][:, place] for name in linear), key=np.mean)
                for place in range(len(columns))
            ],
            axis=1,
        )
    first, *others = right
    long = np.array([len(text.split()) > BORDERS[-1] for text in texts])
    return {
        "reviews": len(texts),
        "reviews_of_more_than_128_words": int(long.sum()),
        "prefix_words": [_named(length) for length in PREFIX_WORDS],
        "accuracy": {name: hits.mean(0).tolist() for name, hits in right.items()},
        "lead": {
            name: [
                lead(right[first][:, place], right[name][:, place]) for place in range(len(columns))
            ]
            for name in others
        },
        "calibration": {
            name: {
                _named(length): calibration(values[:, column], labels)
                for length, column in zip(PREFIX_WORDS, columns, strict=True)
            }
            for name, values in logits.items()
        },
        "border_words": BORDERS,
        "spearman_with_final": {
            name: rank_correlations(values[long]) for name, values in logits.items()
        },
    }


def tables(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    heads = [f"{name} words" if name != "whole" else name for name in figures["prefix_words"]]
    hits = {
        name: [f"{value:.1%}" for value in values] for name, values in figures["accuracy"].items()
    }
    leads = {
        f"lead over {name}": [f"{100 * value:+.1f} ± {100 * half:.1f}" for value, half in values]
        for name, values in figures["lead"].items()
    }
    errors = {
        name: [
            f"{at['expected_calibration_error']:.3f} ({at['log_loss']:.3f})"
            for at in lengths.values()
        ]
        for name, lengths in figures["calibration"].items()
    }
    ranks = {
        name: [f"{value:.2f}" for value in values]
        for name, values in figures["spearman_with_final"].items()
    }
    first = next(iter(figures["calibration"]))
    curves = []
    for length, at in figures["calibration"][first].items():
        bins = " ".join(f"{b['probability']:.2f}/{b['positive']:.2f}" for b in at["curve"])
        curves.append(f"- {length}: {bins}")
    parts = {
        f"Accuracy on {figures['reviews']} dev reviews cut after so many words": shown(heads, hits),
        "Percentage points, ± 1.96 standard errors of the paired difference": shown(heads, leads),
        "Expected calibration error, and log loss in nats": shown(heads, errors),
        f"Reliability of the {first}: mean probability / share positive, by bin": "\n".join(curves),
        (
            "Spearman's correlation of a prefix's reward with that of the whole review, "
            f"{figures['reviews_of_more_than_128_words']} reviews of more than 128 words, "
            f"segments of {SEGMENT_WORDS} words"
        ): shown([f"segment {k} ({b})" for k, b in enumerate(figures["border_words"])], ranks),
    }
    return "\n\n".join(f"{title}\n\n{body}" for title, body in parts.items())


def read_linear(imdb: Path, fitted_to: str, texts: Sequence[str]) -> Floats:
    """Fit the baseline and return its logits, `(texts, 9)`."""
    reviews, labels = labelled_rows(imdb, "guide")
    cuts = (None,) if fitted_to == "whole reviews" else PREFIX_WORDS
    pieces = [beginning(text, length) for length in cuts for text in reviews]
    model = LinearClassifier.fit(pieces, labels * len(cuts), strength=STRENGTHS[fitted_to])
    return np.stack(
        [model.logits([beginning(text, length) for text in texts]) for length in _LENGTHS], axis=1
    )


def kept(
    directory: Path, about: Sequence[str], texts: Sequence[str], read: Callable[[], Floats]
) -> Floats:
    """Return stored logits of the same texts by the same model, or compute them."""
    digest = hashlib.blake2b(json.dumps([*about, *texts]).encode(), digest_size=8).hexdigest()
    path = directory / f"logits-{digest}.npy"
    if not path.exists():
        save_array(path, read())
    return np.asarray(np.load(path))


def _of_files(directory: Path) -> list[str]:
    names = ("model.safetensors", "tokenizer.json", "config.json")
    digests = [hashlib.blake2b((directory / name).read_bytes()).hexdigest() for name in names]
    return [*digests, "the end of long texts"]  # how the texts were read


def _named(length: int | None) -> str:
    return "whole" if length is None else str(length)


if __name__ == "__main__":
    main()

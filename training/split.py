"""Split the reviews among the guide, the judge, and the held-out set.

The part of a review depends only on a hash of its own words. So copies share a part, and adding or
removing other reviews moves none. `python -m training.split --imdb DIR` prints the numbers;
with `--openings FILE` it writes prompts for an evaluation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stars_engine.files.disk import write_file
from training.data import read_reviews
from training.duplicates import copies, exact_copies, normalised, repeated

Part = Literal["guide", "judge", "dev"]
Half = Literal["pilot", "select", "report"]
Flags = NDArray[np.bool]

GUIDE_SHARE = 0.8
_LABELS = ((1, "pos"), (0, "neg"))


def labelled_rows(imdb: Path, part: Part) -> tuple[list[str], list[int]]:
    """Return reviews and their labels (1 positive, 0 negative), in random order.

    Args:
        imdb: Folder of the `.jsonl.gz` files.
        part: "guide": about four fifths of the labelled training reviews, for the reward model;
            "judge": the others, without copies of the guide's, for the judge of evaluations;
            "dev": the dev reviews without copies of any training review or of each other.
    """
    texts, labels = _part(imdb, part)
    return list(texts), list(labels)


def openings(imdb: Path, half: Half, num: int, words: int = 12) -> list[str]:
    """Return beginnings of reviews, no two equal, positive and negative ones in turn.

    A smaller `num` returns the first of a larger one.

    Args:
        imdb: Folder of the `.jsonl.gz` files.
        half: "select": from the half of the dev reviews on which settings are chosen; "report":
            from the other half, on which they are reported; "pilot": from the guide's training
            reviews, on which thresholds are calibrated.
        num: Number of beginnings.
        words: Length of each; shorter reviews are left out.

    Raises:
        ValueError: `half` is unknown, or it has fewer openings.
    """
    if half not in get_args(Half):
        raise ValueError(f"half={half!r} is not allowed; one of {', '.join(get_args(Half))}")
    found: dict[int, list[str]] = {1: [], 0: []}
    seen: set[str] = set()
    part: Part = "guide" if half == "pilot" else "dev"
    for text, label in zip(*labelled_rows(imdb, part), strict=True):
        opening = " ".join(text.split()[:words])
        if len(text.split()) <= words or normalised(opening) in seen:
            continue
        seen.add(normalised(opening))
        if half == "pilot" or (_chance(text, "half") < 0.5) == (half == "select"):
            found[label].append(opening)
    in_turn = [opening for pair in zip(found[1], found[0], strict=False) for opening in pair]
    if not 0 <= num <= len(in_turn):
        raise ValueError(f"num={num} is not allowed; 0 to {len(in_turn)} openings are there")
    return in_turn[:num]


def numbers(imdb: Path) -> dict[str, Any]:
    """Return the number of reviews of each part, and of the copies left out of it."""
    parts = {name: _part(imdb, name) for name in get_args(Part)}
    dev, _, of_training = _dev_and_copies(imdb)
    exact = exact_copies(dev, _training(imdb))
    judged = sum(1 for text in _read(imdb, "train")[0] if _chance(text, "part") >= GUIDE_SHARE)
    return {
        "reviews": {name: len(texts) for name, (texts, _) in parts.items()},
        "positive": {name: sum(labels) for name, (_, labels) in parts.items()},
        "dev_left_out": {
            "exact_copies_of_training": int(exact.sum()),
            "near_copies_of_training": int((of_training & ~exact).sum()),
            "copies_of_dev": len(dev) - int(of_training.sum()) - len(parts["dev"][0]),
        },
        "judge_left_out": {"copies_of_guide": judged - len(parts["judge"][0])},
    }


@cache
def _part(imdb: Path, part: Part) -> tuple[list[str], list[int]]:
    if part == "dev":
        dev, labels, of_training = _dev_and_copies(imdb)
        rows = _pick(dev, labels, ~of_training)
        return _pick(*rows, ~repeated(rows[0]))
    texts, labels = _read(imdb, "train")
    is_guide = np.array([_chance(text, "part") < GUIDE_SHARE for text in texts], bool)
    if part == "guide":
        return _pick(texts, labels, is_guide)
    if part != "judge":
        raise ValueError(f"part={part!r} is not allowed; 'guide', 'judge' or 'dev'")
    rows = _pick(texts, labels, ~is_guide)
    return _pick(*rows, ~copies(rows[0], _part(imdb, "guide")[0]))


@cache
def _dev_and_copies(imdb: Path) -> tuple[list[str], list[int], Flags]:
    """Return all dev reviews, labels, and which of them are copies of training reviews."""
    texts, labels = _read(imdb, "dev")
    return texts, labels, copies(texts, _training(imdb))


def _read(imdb: Path, split: str) -> tuple[list[str], list[int]]:
    """Return a split's labelled reviews in random order, positive and negative ones mixed."""
    rows = [
        (text, label)
        for label, name in _LABELS
        for text in read_reviews(imdb / f"{split}_{name}.jsonl.gz")
    ]
    rows.sort(key=lambda row: (_chance(row[0], "order"), row[0], row[1]))
    return [text for text, _ in rows], [label for _, label in rows]


def _training(imdb: Path) -> list[str]:
    """Return every training review, including those without a label, for the language model."""
    unlabelled = imdb / "train_unsup.jsonl.gz"
    return _read(imdb, "train")[0] + (read_reviews(unlabelled) if unlabelled.exists() else [])


def _pick(texts: list[str], labels: list[int], chosen: Flags) -> tuple[list[str], list[int]]:
    kept = np.flatnonzero(chosen)
    return [texts[index] for index in kept], [labels[index] for index in kept]


def _chance(text: str, purpose: str) -> float:
    """Return a number in [0, 1) that depends only on the words and the purpose."""
    digest = hashlib.blake2b(f"{purpose}\n{normalised(text)}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def main() -> None:
    """Print the numbers of each part, or write openings."""
    parser = argparse.ArgumentParser(prog="python -m training.split", description=__doc__)
    parser.add_argument("--imdb", type=Path, required=True, help="folder of the *.jsonl.gz files")
    parser.add_argument(
        "--openings",
        type=Path,
        help="instead, write openings to this .jsonl: those of the select half, then the others",
    )
    parser.add_argument(
        "--training",
        type=int,
        default=0,
        help="with --openings: so many of training reviews instead",
    )
    parser.add_argument("--select", type=int, default=96, help="openings of the select half")
    parser.add_argument("--report", type=int, default=200, help="openings of the report half")
    args = parser.parse_args()
    if args.openings is None:
        print(json.dumps(numbers(args.imdb), indent=2))
        return
    if args.training:
        prompts = openings(args.imdb, "pilot", args.training)
    else:
        prompts = openings(args.imdb, "select", args.select)
        prompts += openings(args.imdb, "report", args.report)
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    write_file(args.openings, "\n".join(lines) + "\n", "openings")


if __name__ == "__main__":
    main()

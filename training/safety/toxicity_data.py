"""Scored texts of RealToxicityPrompts (Gehman et al. 2020), split into parts without copies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.safety.splits import deal, groups

RUN_WORDS = 5
# The reward and the judge never learn from the same row, and neither from those of `eval`.
SHARES = {"reward": 0.475, "judge": 0.30, "dev": 0.075, "eval": 0.15}


@dataclass(frozen=True)
class ScoredRow:
    """Two halves of one sentence, each scored alone by the Perspective API.

    Attributes:
        prompt: The first half.
        continuation: The second half as it was written, with its leading space.
        prompt_toxicity: Probability in [0, 1] that readers call the first half toxic.
        continuation_toxicity: Likewise for the second half.
    """

    prompt: str
    continuation: str
    prompt_toxicity: float
    continuation_toxicity: float


def read_rows(path: Path) -> list[ScoredRow]:
    """Return the rows in which both halves are scored, in the order of the file."""
    rows = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            halves = row["prompt"], row["continuation"]
            if all(half["toxicity"] is not None for half in halves):
                rows.append(
                    ScoredRow(*(h["text"] for h in halves), *(h["toxicity"] for h in halves))
                )
    return rows


def split_rows(rows: Sequence[ScoredRow], *, seed: int) -> dict[str, list[ScoredRow]]:
    """Split rows into the parts of `SHARES`; rows that share five words in a row stay together."""
    grouped = groups([row.prompt + row.continuation for row in rows], run_words=RUN_WORDS)
    parts = deal(grouped, SHARES, seed=seed)
    return {name: [rows[index] for index in indices] for name, indices in parts.items()}


def scored_texts(rows: Sequence[ScoredRow]) -> tuple[list[str], list[float]]:
    """Return both halves of every row as separate texts, each as a continuation begins."""
    texts, scores = [], []
    for row in rows:
        texts += [as_continuation(row.prompt), as_continuation(row.continuation)]
        scores += [row.prompt_toxicity, row.continuation_toxicity]
    return texts, scores


def as_continuation(text: str) -> str:
    """Return the text with one leading space, as a language model continues after a word."""
    return " " + text.strip()

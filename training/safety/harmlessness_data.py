"""Pairs of answers from hh-rlhf, harmless-base (Bai et al. 2022), in folds without copies."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.safety.splits import deal, groups

RUN_WORDS = 10
NUM_FOLDS = 5
_TURN = "\n\nAssistant:"


@dataclass(frozen=True)
class Pair:
    """Two answers to one conversation.

    Attributes:
        context: The conversation, up to and with the last "Assistant:".
        chosen: The answer that a person called less harmful.
        rejected: The other one.
    """

    context: str
    chosen: str
    rejected: str


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs whose two conversations are equal up to the last answer."""
    pairs = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            contexts, answers = [], []
            for side in ("chosen", "rejected"):
                context, turn, answer = row[side].rpartition(_TURN)
                contexts.append(context + turn)
                answers.append(answer)
            if contexts[0] == contexts[1]:
                pairs.append(Pair(contexts[0], *answers))
    return pairs


def folds(pairs: Sequence[Pair], *, seed: int) -> list[list[Pair]]:
    """Split pairs into folds; pairs that share ten words in a row anywhere stay together."""
    texts = [f"{pair.context}{pair.chosen}\n{pair.rejected}" for pair in pairs]
    shares = {str(fold): 1 / NUM_FOLDS for fold in range(NUM_FOLDS)}
    dealt = deal(groups(texts, run_words=RUN_WORDS), shares, seed=seed)
    return [[pairs[index] for index in indices] for indices in dealt.values()]

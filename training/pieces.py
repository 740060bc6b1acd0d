"""Pieces of texts, counted in words: what has been read so far, and passages from the middle."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence


def beginning(text: str, num_words: int | None) -> str:
    """Return a text up to the end of its word `num_words`, spaces and lines as they are."""
    if num_words is None:
        return text
    for index, word in enumerate(re.finditer(r"\S+", text), start=1):
        if index == num_words:
            return text[: word.end()]
    return text


def with_passages(
    texts: Sequence[str], labels: Sequence[int], lengths: Iterable[int], *, seed: int
) -> tuple[list[str], list[int]]:
    """Return texts and, of each, one passage of each length (in words) that it exceeds.

    Passages begin anywhere, and have the label of the text that they come from.
    """
    lengths, rng = tuple(lengths), random.Random(seed)
    pieces, piece_labels = list(texts), list(labels)
    for text, label in zip(texts, labels, strict=True):
        words = text.split()
        for length in lengths:
            if len(words) > length:
                start = rng.randrange(len(words) - length + 1)
                pieces.append(" ".join(words[start : start + length]))
                piece_labels.append(label)
    return pieces, piece_labels

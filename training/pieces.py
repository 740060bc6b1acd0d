"""Parts of texts, counted in words: beginnings, and excerpts from the middle."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence


def beginning(text: str, num_words: int | None) -> str:
    """Return a text up to the end of its word `num_words`, with spaces and lines unchanged."""
    if num_words is None:
        return text
    for index, word in enumerate(re.finditer(r"\S+", text), start=1):
        if index == num_words:
            return text[: word.end()]
    return text


def with_excerpts(
    texts: Sequence[str], labels: Sequence[int], lengths: Iterable[int], *, seed: int
) -> tuple[list[str], list[int]]:
    """Return texts and, of each, one excerpt of each length (in words) that it exceeds.

    Excerpts begin anywhere, and have the label of their text.
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

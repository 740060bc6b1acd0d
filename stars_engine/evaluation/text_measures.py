"""Measures of texts alone: distinct n-grams, self-BLEU and repetition, over lower-case words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, log

Gram = tuple[str, ...]


def words_of(text: str) -> list[str]:
    """Return lower-case words, separated by white space."""
    return text.lower().split()


def grams(words: Sequence[str], n: int) -> list[Gram]:
    """Return all sequences of n neighboring words."""
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the share of distinct n-grams over all texts; nan if there are none."""
    found = [gram for text in texts for gram in grams(words_of(text), n)]
    return len(set(found)) / len(found) if found else float("nan")


def repetition(text: str, n: int = 4) -> float:
    """Return the share of a text's n-grams that occurred in it before; 0 if it has none."""
    found = grams(words_of(text), n)
    return 1 - len(set(found)) / len(found) if found else 0.0


def self_bleu(texts: Sequence[str], max_n: int = 4) -> float:
    """Return the mean BLEU of each text with all others as references (Zhu et al. 2018).

    A high value means that answers resemble each other. Precisions without a match count half a
    match. The reference length is the closest, the shorter of two. Empty texts are left out.

    Returns:
        0 to 1; nan for fewer than two texts.
    """
    bodies = [words for words in map(words_of, texts) if words]
    if len(bodies) < 2:
        return float("nan")
    lengths = Counter(map(len, bodies))
    counts = {n: [Counter(grams(body, n)) for body in bodies] for n in range(1, max_n + 1)}
    highest = {n: _two_highest(counts[n]) for n in counts}
    return sum(
        _bleu(
            len(body),
            _closest(len(body), lengths),
            [_matches(counts[n][index], highest[n], index) for n in counts],
        )
        for index, body in enumerate(bodies)
    ) / len(bodies)


def _two_highest(counts: Sequence[Counter[Gram]]) -> dict[Gram, tuple[int, int, int]]:
    """Return each n-gram's highest count, the text that has it, and the highest of the others."""
    found: dict[Gram, tuple[int, int, int]] = {}
    for index, own in enumerate(counts):
        for gram, count in own.items():
            first, where, second = found.get(gram, (0, -1, 0))
            if count > first:
                found[gram] = (count, index, first)
            elif count > second:
                found[gram] = (first, where, count)
    return found


def _matches(
    own: Counter[Gram], highest: dict[Gram, tuple[int, int, int]], index: int
) -> tuple[int, int]:
    """Return the n-grams that some other text has as often, and all n-grams."""
    matched = 0
    for gram, count in own.items():
        first, where, second = highest[gram]
        matched += min(count, second if where == index else first)
    return matched, own.total()


def _closest(length: int, lengths: Counter[int]) -> int:
    others = [other for other, count in lengths.items() if other != length or count > 1]
    return min(others, key=lambda other: (abs(other - length), other))


def _bleu(length: int, reference: int, parts: Sequence[tuple[int, int]]) -> float:
    used = [(matched, total) for matched, total in parts if total]
    precision = sum(log((matched or 0.5) / total) for matched, total in used) / len(used)
    return exp(min(0.0, 1 - reference / length) + precision)

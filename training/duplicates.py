"""Copies and near-duplicates of texts, found by the runs of words that they share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

SHINGLE_WORDS = 8
MIN_SHARED, MIN_SHARE = 10, 0.2
_CHUNK = 5_000  # texts


def normalised(text: str) -> str:
    """Return the text's words in lower case, without punctuation, markup and line breaks.

    Texts with equal words are one text here: if you hash this, copies have equal hashes.
    """
    return " ".join(words_of(re.sub(r"<br\s*/?>", " ", text)))


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def exact_copies(texts: Sequence[str], others: Sequence[str]) -> NDArray[np.bool]:
    """Return which of `texts` have exactly the words of one of `others`: `(len(texts),)`."""
    known = {normalised(text) for text in others}
    return np.array([normalised(text) in known for text in texts], bool)


def copies(texts: Sequence[str], others: Sequence[str]) -> NDArray[np.bool]:
    """Return which of `texts` are copies or near-duplicates of one of `others`: `(len(texts),)`.

    A near-duplicate shares at least 10 shingles (distinct runs of 8 words) and a fifth of those of
    the shorter text. So an excerpt is a near-duplicate of its source, and so are two reviews that
    one writer made from one form. Every pair that shares a run is compared; unlike a sketch such as
    MinHash, nothing is left to chance. On these reviews the rule separates well: independent
    reviews share a stock phrase, which is a run or two.
    """
    return exact_copies(texts, others) | _near(texts, others, earlier_only=False)


def repeated(texts: Sequence[str]) -> NDArray[np.bool]:
    """Return which texts are copies or near-duplicates of an earlier one."""
    seen: set[str] = set()
    is_copy = _near(texts, texts, earlier_only=True)
    for index, words in enumerate(map(normalised, texts)):
        is_copy[index] |= words in seen
        seen.add(words)
    return is_copy


def _near(texts: Sequence[str], others: Sequence[str], *, earlier_only: bool) -> NDArray[np.bool]:
    is_copy = np.zeros(len(texts), bool)
    for index, other in _candidates(texts, others):
        if is_copy[index] or (earlier_only and other >= index):
            continue
        first, second = _shingles(texts[index]), _shingles(others[other])
        shared = len(first & second)
        smaller = min(len(first), len(second))
        is_copy[index] = shared >= MIN_SHARED and shared >= MIN_SHARE * smaller
    return is_copy


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = normalised(text).split()
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)}


def _candidates(texts: Sequence[str], others: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield every pair (index in `texts`, index in `others`) that shares 10 shingles or more.

    Equal shingles have equal hashes, so none is missed; unequal ones rarely do, so few are wrong.
    """
    names: dict[str, int] = {}
    hashes, owners = _hashes(texts, names)
    hashes, owners = _distinct(hashes, owners)
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    # Most runs of `others` occur in no other text: a table of 26 bits shows that at little cost.
    is_known = np.zeros(1 << 26, bool)
    is_known[hashes >> np.uint64(38)] = True
    for start in range(0, len(others), _CHUNK):
        theirs, their_owners = _hashes(others[start : start + _CHUNK], names)
        perhaps = is_known[theirs >> np.uint64(38)]
        theirs, their_owners = _distinct(theirs[perhaps], their_owners[perhaps])
        first = np.searchsorted(hashes, theirs, side="left")
        number = np.searchsorted(hashes, theirs, side="right") - first
        within = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        left = owners[np.repeat(first, number) + within]
        pairs, shared = np.unique(
            left * _CHUNK + np.repeat(their_owners, number), return_counts=True
        )
        for pair in pairs[shared >= MIN_SHARED].tolist():
            index, other = divmod(pair, _CHUNK)
            yield index, start + other


def _hashes(
    texts: Sequence[str], names: dict[str, int]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return each run of 8 words as 64 bits, and the index of its text; add to `names`."""
    ids = [[names.setdefault(word, len(names)) for word in normalised(t).split()] for t in texts]
    owners = np.repeat(np.arange(len(texts)), [len(row) for row in ids])
    words = _scrambled(np.array([word for row in ids for word in row], np.uint64))
    starts = np.arange(max(0, len(words) - SHINGLE_WORDS + 1))
    starts = starts[owners[starts] == owners[starts + SHINGLE_WORDS - 1]]
    hashes = np.zeros(len(starts), np.uint64)
    for offset in range(SHINGLE_WORDS):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + words[starts + offset]
    return _scrambled(hashes), owners[starts]


def _distinct(
    hashes: NDArray[np.uint64], owners: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return each hash once for each text."""
    order = np.lexsort((hashes, owners))
    hashes, owners = hashes[order], owners[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[new], owners[new]


def _scrambled(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a bijection of 64 bits whose high bits look random (splitmix64's finaliser)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

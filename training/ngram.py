"""A 5-gram model with modified Kneser-Ney smoothing, the baseline of the language model.

Chen and Goodman, *An Empirical Study of Smoothing Techniques for Language Modeling* (1999), section
2.8: interpolated, three discounts per order, continuation counts below the highest order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Order:
    """All n-grams of one length: sorted keys, and the data that interpolation needs.

    A key is `context * vocab_size + token`, where `context` is the index of the first n - 1 tokens
    in the order below. Arrays run over the n-grams, or over the contexts (`backoff`).
    """

    keys: Ints
    discounted: Floats  # (num_ngrams,): (count - discount) / count of the context
    backoff: Floats  # (num_contexts,): weight of the order below


class NgramModel:
    """Counts of one token stream, as interpolated probabilities.

    Args:
        ids: Token ids of the training texts, one after another, each text with its end token.
        vocab_size: Number of tokens; unseen ones get a share by interpolation with the uniform law.
        order: Length of the longest n-gram.
    """

    def __init__(self, ids: Ints, *, vocab_size: int, order: int = 5) -> None:
        self.vocab_size = vocab_size
        # grams[n][i]: index of the (n + 1)-gram that begins at position i.
        keys, grams, counts, suffixes = [], [], [], []
        current = ids.astype(np.int64)
        for n in range(order):
            if n > 0:
                current = grams[-1][:-1] * vocab_size + ids[n:]
            unique, first, index, count = np.unique(
                current, return_index=True, return_inverse=True, return_counts=True
            )
            keys.append(unique)
            counts.append(count)
            suffixes.append(grams[-1][first + 1] if n > 0 else np.zeros(len(unique), np.int64))
            grams.append(index)
        self.orders = []
        for n in range(order):
            if n < order - 1:  # how many different tokens precede it
                counts[n] = np.bincount(suffixes[n + 1], minlength=len(keys[n]))
            num_contexts = len(keys[n - 1]) if n > 0 else 1
            contexts = keys[n] // vocab_size if n > 0 else np.zeros(len(keys[n]), np.int64)
            self.orders.append(_smoothed(keys[n], counts[n], contexts, num_contexts))

    def log2_probs(self, ids: Ints) -> Floats:
        """Return log2 P(ids[i] | the tokens before it) for i >= 1: shape `(len(ids) - 1,)`."""
        length = len(ids) - 1
        probs = np.full(length, 1 / self.vocab_size)
        # contexts[i]: index of the longest n-gram that ends before token i + 1; -1 if unseen.
        contexts = np.zeros(length, np.int64)
        for n, table in enumerate(self.orders):
            found, index = _find(table.keys, contexts * self.vocab_size + ids[1:])
            seen_context = contexts >= 0
            backoff = np.where(seen_context, table.backoff[contexts.clip(0)], 1.0)
            gain = np.where(found & seen_context, table.discounted[index], 0.0)
            probs = gain + backoff * probs
            contexts = self._contexts(ids, n + 1)
        return np.log2(probs)

    def _contexts(self, ids: Ints, n: int) -> Ints:
        """Return the index of the n-gram that ends before each token; -1 if unseen or too long."""
        length = len(ids) - 1
        index = np.zeros(length, np.int64)
        known = np.ones(length, bool)
        for offset in range(n):
            # The n-gram of token i + 1 begins at i + 1 - n.
            positions = np.arange(length) + 1 - n + offset
            known &= positions >= 0
            key = index * self.vocab_size + ids[positions.clip(0)]
            found, index = _find(self.orders[offset].keys, key)
            known &= found
        return np.where(known, index, -1)


def _smoothed(keys: Ints, counts: Ints, contexts: Ints, num_contexts: int) -> Order:
    """Return discounts D1, D2, D3+ from counts of counts; their mass goes to the order below."""
    ones, twos, threes, fours = (max(1, int((counts == r).sum())) for r in (1, 2, 3, 4))
    base = ones / (ones + 2 * twos)
    steps = [
        1 - 2 * base * twos / ones,
        2 - 3 * base * threes / twos,
        3 - 4 * base * fours / threes,
    ]
    # The discount is always positive; otherwise an unseen n-gram would be impossible.
    steps = np.clip(steps, 0.05, [1.0, 2.0, 3.0])
    discounts = np.array([0.0, *steps])[np.minimum(counts, 3)]
    totals = np.bincount(contexts, weights=counts, minlength=num_contexts)
    taken = np.bincount(contexts, weights=np.minimum(discounts, counts), minlength=num_contexts)
    followed = totals > 0  # no token follows a context at the end of the stream
    backoff = np.where(followed, taken / np.where(followed, totals, 1), 1.0)
    left = np.maximum(counts - discounts, 0) / np.where(followed, totals, 1)[contexts]
    return Order(keys, left, backoff)


def _find(keys: Ints, wanted: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Return whether each of `wanted` is in sorted `keys`, and its index (0 if it is not)."""
    index = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    found = keys[index] == wanted
    return found, np.where(found, index, 0)

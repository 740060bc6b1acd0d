"""Linear models on words and pieces of words: the independent judge, and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_union


def bag_of_words() -> TfidfVectorizer:
    """Return features of words and pairs of words."""
    return TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)


def words_and_pieces() -> Any:
    """Return features of words, pairs of words, and runs of 2 to 5 characters inside words."""
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=3, sublinear_tf=True)
    return make_union(bag_of_words(), pieces)


class LinearRegressor:
    """Logistic regression on probabilities: each text counts as both labels, by its score.

    Args:
        features: What turns texts into a sparse matrix: `bag_of_words()` or `words_and_pieces()`.
        strength: Inverse of the L2 penalty.
    """

    def __init__(self, features: Any, *, strength: float) -> None:
        self._features = features
        self._model = LogisticRegression(C=strength, max_iter=2000)

    def fit(self, texts: Sequence[str], scores: Sequence[float]) -> LinearRegressor:
        """Learn from texts and their scores in [0, 1]."""
        matrix = self._features.fit_transform(texts)
        weights = np.asarray(scores, float)
        self._model.fit(
            vstack([matrix, matrix]),
            np.repeat([1, 0], len(weights)),
            sample_weight=np.concatenate([weights, 1 - weights]),
        )
        return self

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Return the estimated score of each text, in [0, 1]: `(len(texts),)`."""
        return self._model.predict_proba(self._features.transform(texts))[:, 1]

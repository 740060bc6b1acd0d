"""Linear classifiers of text on words and runs of words."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from stars_engine.files.disk import write_file

Floats = NDArray[np.float64]

# Marks of emphasis count as words; an apostrophe keeps a negation together.
_WORD = r"(?u)\w[\w']*|[!?]"


class LinearClassifier:
    """Log-odds of a positive text: a weight for every word and run of words, without order.

    Args:
        terms: The words and runs, in the order of `idf` and `weights`.
        idf: Inverse document frequencies.
        weights: Weights of the normalised TF-IDF features.
        bias: Log-odds of a text with none of the terms.
    """

    def __init__(self, terms: Sequence[str], idf: Floats, weights: Floats, bias: float) -> None:
        longest = max((term.count(" ") + 1 for term in terms), default=1)
        self._terms, self._idf, self._weights, self._bias = terms, idf, weights, bias
        self._features = _features(longest, vocabulary=terms)
        self._features.idf_ = idf

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        labels: Sequence[int],
        *,
        strength: float,
        bayes: bool = False,
    ) -> Self:
        """Learn from texts and labels, 1 for positive and 0 for negative.

        Args:
            texts: Texts to learn from.
            labels: One label for each text.
            strength: Inverse of the L2 penalty.
            bayes: Whether naive Bayes' log-count ratios weight the features first, which helps if
                texts are few or short (Wang and Manning 2012).
        """
        features = _features(2, min_df=2)
        matrix = features.fit_transform(texts)
        labels = np.asarray(labels)
        ratios = np.ones(matrix.shape[1])
        if bayes:
            present = matrix > 0
            counts = [1 + np.asarray(present[labels == value].sum(0)).ravel() for value in (1, 0)]
            ratios = np.log(counts[0] / counts[0].sum()) - np.log(counts[1] / counts[1].sum())
        # The loss is a mean over texts, so the default tolerance would stop long before the end.
        model = LogisticRegression(C=strength, max_iter=2000, tol=1e-5)
        model.fit(matrix.multiply(ratios).tocsr(), labels)
        terms = features.get_feature_names_out().tolist()
        return cls(terms, features.idf_, model.coef_[0] * ratios, float(model.intercept_[0]))

    def logits(self, texts: Sequence[str]) -> Floats:
        """Return the log-odds of each text: `(len(texts),)`."""
        return np.asarray(self._features.transform(texts) @ self._weights + self._bias)

    def calibrated(self, texts: Sequence[str], labels: Sequence[int]) -> Self:
        """Return a copy with log-odds calibrated on texts that it has not seen (Platt 1999)."""
        scale = LogisticRegression(C=np.inf).fit(self.logits(texts)[:, None], labels)
        slope, shift = float(scale.coef_[0, 0]), float(scale.intercept_[0])
        return type(self)(self._terms, self._idf, slope * self._weights, slope * self._bias + shift)

    def save(self, path: Path) -> None:
        """Write an `.npz` file, which can be read without running code from it."""
        terms = np.frombuffer("\n".join(self._terms).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, terms=terms, idf=self._idf, weights=self._weights, bias=self._bias
        )
        write_file(path, buffer.getvalue(), "linear model")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of `save`."""
        with np.load(path, allow_pickle=False) as arrays:
            terms = arrays["terms"].tobytes().decode().split("\n")
            return cls(terms, arrays["idf"], arrays["weights"], float(arrays["bias"]))


def _features(longest: int, **options: object) -> TfidfVectorizer:
    return TfidfVectorizer(
        ngram_range=(1, longest), sublinear_tf=True, token_pattern=_WORD, **options
    )

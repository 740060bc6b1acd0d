"""Judges: rewards of whole answers that never guide, and the scores they gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from stars_engine.config import RewardConfig
from stars_engine.errors import needs_extra
from stars_engine.evaluation.score_store import ScoreStore, score_key
from stars_engine.evaluation.store import identity
from stars_engine.rewards.base import RewardModel, score_values
from stars_engine.rewards.loading import load_reward
from stars_engine.types import RewardInput, RewardPrompt

Pair = tuple[str, str]  # prompt, answer

_BATCH = 64


def vader(_prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Return how positive answers are, -1 to 1: VADER's compound value (Hutto and Gilbert 2014).

    A lexicon with rules for negation and emphasis; it has seen neither the embedded models' data
    nor their tokens. Needs the extra `eval`.
    """
    analyzer = _vader()
    return [float(analyzer.polarity_scores(text)["compound"]) for text in completions]


@cache
def _vader() -> Any:
    with needs_extra("eval"):
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # noqa: PLC0415
    return SentimentIntensityAnalyzer()


class Judges:
    """Scores answers with judges, and stores the scores so that each is computed once.

    Args:
        configs: The judges by name.
        store: The scores that they gave.
    """

    def __init__(self, configs: dict[str, RewardConfig], store: ScoreStore) -> None:
        self._configs, self._store = configs, store
        self._loaded: dict[str, RewardModel] = {}

    def scores(
        self,
        name: str,
        pairs: Sequence[Pair],
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> list[float]:
        """Return a judge's score of each (prompt, answer).

        Args:
            name: The judge.
            pairs: The prompts with their answers.
            progress: Called with the scores done and in total, if any are missing.

        Raises:
            RewardError: The judge failed.
        """
        prefix = identity(self._configs[name])
        keys = [score_key(prefix, *pair) for pair in pairs]
        missing = {
            key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._store
        }
        if missing:
            progress(0, len(missing))
            judge, done = self._load(name), 0
            for batch in _batches(list(missing.items())):
                values = score_values(judge, [_input(*pair) for _, pair in batch])
                self._store.add(dict(zip((key for key, _ in batch), values, strict=True)))
                done += len(batch)
                progress(done, len(missing))
        return [float(self._store[key]) for key in keys]

    def _load(self, name: str) -> RewardModel:
        if name not in self._loaded:
            self._loaded[name] = load_reward(self._configs[name])
        return self._loaded[name]


def _input(prompt: str, answer: str) -> RewardInput:
    return RewardInput(RewardPrompt(prompt), answer, (), finished=True)


def _batches(items: list[tuple[str, Pair]]) -> Iterable[list[tuple[str, Pair]]]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))

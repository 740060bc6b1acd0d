"""Judges: rewards of whole answers that never guide, and the scores they gave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from stars_engine.config import RewardConfig
from stars_engine.errors import needs_extra
from stars_engine.evaluation.store import identity
from stars_engine.files.disk import append_lines
from stars_engine.rewards.base import RewardModel, score_values
from stars_engine.rewards.loading import load_reward
from stars_engine.types import RewardInput, RewardPrompt

Pair = tuple[str, str]  # prompt, answer

_BATCH = 64
_TITLE = "scores"


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
        path: The file of scores, JSON lines.
    """

    def __init__(self, configs: dict[str, RewardConfig], path: Path) -> None:
        self._configs, self._path = configs, path
        self._loaded: dict[str, RewardModel] = {}
        self._scores: dict[str, float] = {}
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                record = _record(line)
                if record is not None:
                    self._scores[record["key"]] = float(record["score"])

    def scores(
        self,
        name: str,
        pairs: Sequence[Pair],
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> list[float]:
        """Return a judge's score of each (prompt, answer).

        Raises:
            RewardError: The judge failed.
        """
        config = self._configs[name]
        prefix = identity(config)
        keys = [_key(prefix, pair) for pair in pairs]
        missing = {
            key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._scores
        }
        if missing:
            judge, done = self._load(name), 0
            for batch in _batches(list(missing.items())):
                inputs = [
                    RewardInput(RewardPrompt(prompt), answer, (), finished=True)
                    for _, (prompt, answer) in batch
                ]
                values = score_values(judge, inputs)
                found = dict(zip((key for key, _ in batch), values, strict=True))
                lines = [json.dumps({"key": key, "score": value}) for key, value in found.items()]
                data = "".join(f"{line}\n" for line in lines).encode()
                append_lines(self._path, data, _TITLE, is_whole=lambda x: _record(x) is not None)
                self._scores |= found
                done += len(batch)
                progress(done, len(missing))
        return [self._scores[key] for key in keys]

    def _load(self, name: str) -> RewardModel:
        if name not in self._loaded:
            self._loaded[name] = load_reward(self._configs[name])
        return self._loaded[name]


def _key(judge: str, pair: Pair) -> str:
    text = json.dumps([judge, *pair])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _record(line: bytes) -> dict[str, Any] | None:
    """Return a stored score; None for a line that a crash cut off."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"key", "score"} <= record.keys() else None


def _batches(items: list[tuple[str, Pair]]) -> Iterable[list[tuple[str, Pair]]]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))

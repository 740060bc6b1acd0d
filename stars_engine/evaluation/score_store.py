"""Stored scores of answers, so that each is computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stars_engine.files.disk import append_lines

_TITLE = "scores"


class ScoreStore:
    """Reads and appends scores.

    Args:
        path: The file, JSON lines `{key, score}`. Lines that a crash cut off are ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scores: dict[str, Any] = {}
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                record = _record(line)
                if record is not None:
                    self._scores[record["key"]] = record["score"]

    def __contains__(self, key: str) -> bool:
        return key in self._scores

    def __getitem__(self, key: str) -> Any:
        return self._scores[key]

    def add(self, scores: Mapping[str, Any]) -> None:
        """Append scores by their keys.

        Raises:
            ConfigError: The file cannot be written; it stays unchanged.
        """
        lines = [json.dumps({"key": key, "score": score}) for key, score in scores.items()]
        data = "".join(f"{line}\n" for line in lines).encode()
        append_lines(self._path, data, _TITLE, is_whole=lambda line: _record(line) is not None)
        self._scores |= scores


def score_key(scorer: str, prompt: str, answer: str) -> str:
    """Return the key of a scorer's score of an answer."""
    text = json.dumps([scorer, prompt, answer])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _record(line: bytes) -> dict[str, Any] | None:
    """Return a stored score; None for a line that a crash cut off."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"key", "score"} <= record.keys() else None

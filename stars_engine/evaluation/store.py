"""Stored answers: one line per arm, seed and prompt, so that an interrupted run resumes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stars_engine.errors import ConfigError
from stars_engine.files.disk import append_lines, file_error, why_not
from stars_engine.redaction import DIGESTS
from stars_engine.schema import Schema
from stars_engine.types import StarsResult

_TITLE = "answers"

HalfName = Literal["tuning", "fresh"]


class AnswerRecord(Schema):
    """The answers of an arm to one prompt under one seed."""

    key: str = Field(description="hash of everything that the answers depend on")
    arm: str = Field(description="name of the arm")
    half: HalfName = Field(description="whether the prompt is for tuning or for the report")
    prompt_index: int = Field(description="index among the prompts of the half")
    prompt: str = Field(description="the prompt")
    seed: int = Field(description="seed of the arm")
    wall_s: float = Field(description="its share of the wall time of the engine's call, seconds")
    cpu_s: float = Field(description="the same for processor time of all threads")
    results: tuple[StarsResult, ...] = Field(description="the answers")


class AnswerStore:
    """Reads and appends answers.

    Args:
        path: The file, JSON lines.

    Raises:
        ConfigError: The file cannot be read, or has a line that is not a record.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, AnswerRecord] = {}
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise file_error(path, _TITLE, f"cannot be read: {why_not(error)}") from None
        *lines, torn = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                record = AnswerRecord.model_validate_json(line)
            except ConfigError as error:
                message = f"line {number} is not a record: {error}. Hint: remove the line"
                raise file_error(path, _TITLE, message) from None
            self._records[record.key] = record
        if _is_record(torn):  # complete except for its newline
            record = AnswerRecord.model_validate_json(torn)
            self._records[record.key] = record

    def get(self, key: str) -> AnswerRecord | None:
        """Return the record with a key, if it is stored."""
        return self._records.get(key)

    def append(self, records: Iterable[AnswerRecord]) -> None:
        """Append records, each line as a whole.

        Raises:
            ConfigError: The file cannot be written; it stays unchanged.
        """
        for record in records:
            line = record.model_dump_json().encode() + b"\n"
            append_lines(self._path, line, _TITLE, is_whole=_is_record)
            self._records[record.key] = record


def _is_record(line: bytes) -> bool:
    try:
        json.loads(line)
        AnswerRecord.model_validate_json(line)
    except (ValueError, ConfigError):
        return False
    return True


def identity(config: Schema) -> str:
    """Return text that is equal for configs that generate the same answers.

    Fields that are None are omitted, so that a new optional field does not make stored answers
    unusable. Live objects are identified by name only.
    """
    values = config.model_dump(mode="json", exclude_none=True, fallback=name_of, context=DIGESTS)
    return json.dumps(values, sort_keys=True)


def name_of(live: Any) -> str:
    """Return the name of a live object: 'package.module:name'."""
    named = live if hasattr(live, "__qualname__") else type(live)
    return f"{named.__module__}:{named.__qualname__}"

"""Prompts of an evaluation: read from a file or the package, split into tuning and fresh ones."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from stars_engine.errors import ConfigError, Problem
from stars_engine.files.disk import file_error, why_not
from stars_engine.schema import Schema

_TITLE = "prompts"
_FIRST_TURN = re.compile(r"\s*Human:\s*(.*?)\s*(?:\n\nAssistant:|\Z)", re.DOTALL)


class PromptSet(Schema):
    """Where prompts come from, and how many are for tuning and for the report."""

    file: str | None = Field(
        default=None,
        description="a .jsonl, .csv, .tsv or .txt file (one prompt per line); None: `bundled`",
        examples=["prompts.jsonl"],
    )
    bundled: Literal["reviews", "requests", "adversarial"] = Field(
        default="reviews",
        description="prompts of the package: beginnings of film reviews, everyday requests, or "
        "requests that a harmless assistant declines",
    )
    column: str = Field(
        default="prompt", description="the field or column of a prompt", examples=["question"]
    )
    form: Literal["text", "dialogue"] = Field(
        default="text",
        description="'dialogue' takes the first human turn of a record like those of HH-RLHF",
    )
    tuning: int = Field(
        default=40, ge=0, description="prompts for calibration and for choosing arms"
    )
    fresh: int = Field(default=40, ge=1, description="other prompts, on which arms are reported")
    seed: int | None = Field(
        default=0, ge=0, description="seed of the order; None keeps the order of the file"
    )

    @model_validator(mode="after")
    def _two_halves(self) -> Self:
        if 0 < self.tuning < 8:
            raise ValueError(
                f"tuning={self.tuning} is too few to calibrate. Hint: use 8 or more, or 0 if "
                "nothing is tuned"
            )
        return self


class Halves(NamedTuple):
    """Tuning prompts and fresh prompts; no prompt is in both."""

    tuning: tuple[str, ...]
    fresh: tuple[str, ...]


def read_halves(source: PromptSet) -> Halves:
    """Return the prompts of a set.

    Raises:
        ConfigError: The file cannot be read, a record has no such column, or there are too few
            different prompts.
    """
    title = source.file or source.bundled
    if source.file is None:
        path = resources.files("stars_engine") / "evaluation" / "prompts" / f"{source.bundled}.txt"
        found = path.read_text(encoding="utf-8").splitlines()
    else:
        found = list(_records(Path(source.file), source.column))
    if source.form == "dialogue":
        found = [_first_turn(text) for text in found]
    prompts = list(dict.fromkeys(text for text in found if text.strip()))
    if source.seed is not None:
        Random(source.seed).shuffle(prompts)
    wanted = source.tuning + source.fresh
    if len(prompts) < wanted:
        message = (
            f"{title} has {len(prompts)} different prompts, and {source.tuning} tuning and "
            f"{source.fresh} fresh prompts are wanted. Hint: lower them, or give more prompts"
        )
        raise ConfigError("PromptSet", [Problem("fresh", message)])
    return Halves(tuple(prompts[: source.tuning]), tuple(prompts[source.tuning : wanted]))


def _records(path: Path, column: str) -> Iterator[str]:
    """Yield the prompts of a file, in order."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise file_error(path, _TITLE, f"cannot be read: {why_not(error)}") from None
    match path.suffix:
        case ".txt":
            yield from (line.removesuffix("\r") for line in text.split("\n"))
        case ".jsonl":
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    yield _of_column(path, number, _parsed(path, number, line), column)
        case ".csv" | ".tsv":
            delimiter = "," if path.suffix == ".csv" else "\t"
            rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
            for number, row in enumerate(rows, 2):
                yield _of_column(path, number, row, column)
        case _:
            message = f"ends in {path.suffix!r}. Hint: use .jsonl, .csv, .tsv or .txt"
            raise file_error(path, _TITLE, message)


def _parsed(path: Path, number: int, line: str) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise file_error(
            path, _TITLE, f"line {number} is not JSON: {error}. Hint: correct it"
        ) from None


def _of_column(path: Path, number: int, row: object, column: str) -> str:
    value = row.get(column) if isinstance(row, dict) else None
    if isinstance(value, str):
        return value
    known = ", ".join(map(str, row)) if isinstance(row, dict) else "none"
    message = (
        f"line {number} has no text in the column {column!r}; its columns: {known}. Hint: name "
        "the column of the prompts"
    )
    raise file_error(path, _TITLE, message)


def _first_turn(dialogue: str) -> str:
    found = _FIRST_TURN.match(dialogue)
    return found[1] if found else dialogue.strip()

"""Read prompts from files and standard input, as lines or as JSON records with their ids."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import typer

from stars_engine.errors import ConfigError, PromptError
from stars_engine.messages import Chat

_LINES = '{"prompt": "text"} or {"messages": [{"role": "user", "content": "text"}]}'


class PromptRecord(NamedTuple):
    """One prompt of a file.

    Attributes:
        prompt: The prompt.
        id: Its `id` in the file; None if it has none.
    """

    prompt: str | Chat
    id: str | int | None = None

    @property
    def shown(self) -> str:
        """The prompt as text: a conversation by its last message."""
        if isinstance(self.prompt, str):
            return self.prompt
        return f"{self.prompt.messages[-1].content}\n"


def read_prompts(path: Path | None) -> list[str | Chat]:
    """Return the prompts of `read_records` without their ids."""
    return [record.prompt for record in read_records(path)]


def read_records(path: Path | None) -> list[PromptRecord]:
    """Read one prompt per line from a file or stdin.

    `.jsonl` files hold `{"prompt": ...}` or `{"messages": [...]}`, with an optional `id`. Only
    newlines end a line. Form feeds and Unicode separators are part of a prompt.

    Raises:
        PromptError: The input is not UTF-8, is malformed, or contains no prompt.
    """
    if path is None:
        if sys.stdin.isatty():
            raise typer.BadParameter("give a prompt, --prompts FILE, or prompts on stdin")
        text = _decode("stdin", sys.stdin.buffer.read())
    else:
        text = _decode(str(path), path.read_bytes())
    numbered = [
        (number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1)
    ]
    numbered = [(number, line) for number, line in numbered if line.strip()]
    if not numbered:
        raise PromptError(f"{path or 'stdin'} holds no prompt. Hint: write one prompt per line")
    if path is not None and path.suffix == ".jsonl":
        return [_record(path, number, line) for number, line in numbered]
    return [PromptRecord(line) for _, line in numbered]


def _decode(source: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PromptError(
            f"{source}, line {line}: not UTF-8 text. Hint: save the file as UTF-8"
        ) from None


def _record(path: Path, number: int, line: str) -> PromptRecord:
    where = f"{path}, line {number}"
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict) or ("prompt" in values) == ("messages" in values):
        raise PromptError(f"{where}: not a prompt. Hint: write lines like {_LINES}")
    name = values.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int | None):
        raise PromptError(f"{where}: id {name!r} is not allowed; allowed: text or an integer")
    return PromptRecord(_prompt(where, values), name)


def _prompt(where: str, values: dict[str, Any]) -> str | Chat:
    if "messages" in values:
        try:
            return Chat(values["messages"])
        except ConfigError as error:
            raise PromptError(f"{where}: {error}") from None
    if not isinstance(values["prompt"], str):
        raise PromptError(f"{where}: prompt is not text. Hint: write lines like {_LINES}")
    return values["prompt"]

"""`stars generate`: stream one prompt, or answer many with a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from stars_engine.cli.messages import messages
from stars_engine.cli.output import write, write_json
from stars_engine.cli.threads import use_one_thread
from stars_engine.config import StarsConfig
from stars_engine.engine.engine import StarsEngine
from stars_engine.errors import ConfigError, PromptError
from stars_engine.trace import tokens_in_words, write_jsonl
from stars_engine.types import SegmentEvent, StarsResult


def read_prompts(path: Path | None) -> list[str]:
    """Read one prompt per line from a file or stdin; `.jsonl` files contain `{"prompt": ...}`.

    Only newlines end a line. Form feeds and Unicode separators are part of a prompt.

    Raises:
        PromptError: The input is not UTF-8, is malformed, or contains no prompt.
    """
    if path is None:
        if sys.stdin.isatty():
            raise typer.BadParameter(
                "there is no prompt. Hint: give one, --prompts FILE, or prompts on stdin"
            )
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
        return [_json_prompt(path, number, line) for number, line in numbered]
    return [line for _, line in numbered]


def run_generate(
    prompts: Sequence[str], config: StarsConfig, *, as_json: bool, trace: Path | None
) -> None:
    """Generate, print in the order of the prompts, and trace each result when it finishes."""
    if trace is not None:
        write_jsonl([], trace)  # fails early if the file cannot be written
    if config.uses_embedded_pair:
        use_one_thread()
    untraced: ConfigError | None = None
    with StarsEngine(config) as engine:  # closed, so that its thread ends with the command
        n = engine.sampling.n
        streaming = len(prompts) == 1 and n == 1 and not as_json
        events = engine.stream(list(prompts))
        results = _shown_as_text(events) if streaming else _with_progress(events, len(prompts), n)
        for result in results:
            if trace is not None and untraced is None:
                try:
                    write_jsonl([result], trace, append=True)
                except ConfigError as error:  # keep printing answers if the disk is full
                    untraced = error
            if as_json:
                write_json(result.model_dump_json())
            elif not streaming:
                write(f"{prompts[result.prompt_index]}{result.text}\n")
    if untraced is not None:
        raise untraced


def _shown_as_text(events: Iterator[SegmentEvent]) -> Iterator[StarsResult]:
    for event in events:
        write(event.text, end="")
        if event.result is not None:
            write("")
            usage = event.result.usage
            reward = "none" if event.result.reward is None else f"{event.result.reward:.3f}"
            messages.say(
                f"{event.result.finish_reason}, reward {reward}, {tokens_in_words(usage)}, "
                f"{usage.num_forced} forced, seed {event.result.seed}",
                style="dim",
            )
            yield event.result


def _with_progress(
    events: Iterator[SegmentEvent], num_prompts: int, n: int
) -> Iterator[StarsResult]:
    """Yield results in the order of the prompts, and show how many have finished."""
    columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    ended: dict[tuple[int, int], StarsResult] = {}
    order = [(p, s) for p in range(num_prompts) for s in range(n)]
    following = iter(order)
    wanted = next(following, None)
    with Progress(*columns, console=messages, disable=not messages.is_terminal) as progress:
        task = progress.add_task("", total=len(order))
        for event in events:
            if event.result is None:
                continue
            ended[event.result.prompt_index, event.result.sample_index] = event.result
            progress.advance(task)
            while wanted in ended:
                yield ended.pop(wanted)
                wanted = next(following, None)


def _decode(source: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PromptError(
            f"{source}, line {line}: not UTF-8 text. Hint: save the file as UTF-8"
        ) from None


def _json_prompt(path: Path, number: int, line: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (json.JSONDecodeError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise PromptError(
            f'{path}, line {number}: not a prompt. Hint: write lines like {{"prompt": "text"}}'
        )
    return prompt

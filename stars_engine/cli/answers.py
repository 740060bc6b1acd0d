"""Generate the answers of `stars generate`: stream one, or show the progress of many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stars_engine.cli.loading import loaded
from stars_engine.cli.messages import messages
from stars_engine.cli.output import write, write_json
from stars_engine.cli.progress import TimeLeft, Wait
from stars_engine.cli.prompts import PromptRecord
from stars_engine.config import EngineParams, StarsConfig
from stars_engine.errors import ConfigError
from stars_engine.files.config_files import check_writable
from stars_engine.trace import read_jsonl, tokens_in_words, write_jsonl
from stars_engine.types import SegmentEvent, StarsResult

Key = tuple[int, int]  # prompt and sample


def run_generate(
    records: Sequence[PromptRecord],
    config: StarsConfig,
    *,
    as_json: bool,
    trace: Path | None,
    resume: bool = False,
) -> int:
    """Generate, print in the order of the prompts, and trace each result when it finishes.

    If a resumed file has all results, they are printed and no model is loaded.

    Args:
        records: The prompts.
        config: The settings.
        as_json: Whether to print JSON lines.
        trace: A file of results to write as well.
        resume: Whether to keep the results that the file has.

    Returns:
        The number of refused answers, for which no draft of a segment was accepted.
    """
    settings_hash = _settings_hash(config)
    n = 1 if config.sampling == "model" else config.sampling.n
    order = [(p, s) for p in range(len(records)) for s in range(n)]
    stored = _stored_results(trace, records, settings_hash, resume=resume)
    known = {key: stored[key] for key in order if key in stored}
    missing = sorted({p for p, s in order if (p, s) not in known})
    output = _Output(records, settings_hash, known, as_json=as_json, trace=trace)
    if not missing:
        messages.say(f"all {len(order)} answers are in {trace} already; nothing is left to do")
        output.write_all(known[key] for key in order)
        return output.num_refused
    with loaded(config) as (engine, wait):
        if not resume:
            _empty(trace)
        if known:
            messages.say(f"{len(known)} of {len(order)} answers are in {trace} already")
        output.streams = order == [(0, 0)] and not as_json
        wait.update(_first_text(config, len(missing)), aloud=False)
        events = engine.stream([records[index].prompt for index in missing])
        output.write_all(
            _shown_as_text(events, wait)
            if output.streams
            else _with_progress(_renumbered(events, missing), order, known, wait)
        )
    return output.num_refused


class _Output:
    """Prints results, and appends those that are new to the trace.

    Args:
        records: The prompts.
        settings_hash: The hash of the settings, which each result gets.
        known: Results that the trace has.
        as_json: Whether to print JSON lines.
        trace: The file of results; None: none.

    Attributes:
        streams: Whether the text of results is printed elsewhere, while it is generated.
        num_refused: Printed results that are refused.
    """

    def __init__(
        self,
        records: Sequence[PromptRecord],
        settings_hash: str,
        known: dict[Key, StarsResult],
        *,
        as_json: bool,
        trace: Path | None,
    ) -> None:
        self._records, self._settings_hash, self._known = records, settings_hash, known
        self._as_json, self._trace = as_json, trace
        self.streams, self.num_refused = False, 0

    def write_all(self, results: Iterable[StarsResult]) -> None:
        """Write results as they come.

        Raises:
            ConfigError: The trace cannot be written; all results are printed nevertheless.
        """
        untraced: ConfigError | None = None
        for found in results:
            record = self._records[found.prompt_index]
            result = found.replace(
                prompt=record.prompt, id=record.id, settings_hash=self._settings_hash
            )
            self.num_refused += result.finish_reason in ("rejected", "fallback")
            is_new = (result.prompt_index, result.sample_index) not in self._known
            if self._trace is not None and untraced is None and is_new:
                try:
                    write_jsonl([result], self._trace, append=True)
                except ConfigError as error:  # keep printing answers if the disk is full
                    untraced = error
            if self._as_json:
                write_json(result.model_dump_json())
            elif not self.streams:
                write(f"{record.shown}{result.text}\n")
        if untraced is not None:
            raise untraced


def _stored_results(
    trace: Path | None, records: Sequence[PromptRecord], settings_hash: str, *, resume: bool
) -> dict[Key, StarsResult]:
    """Return the results of a run to resume, which must have had the same settings."""
    if trace is None:
        return {}
    check_writable(trace, "results")
    known: dict[Key, StarsResult] = {}
    for result in read_jsonl(trace) if resume and trace.exists() else ():
        index = result.prompt_index
        record = records[index] if index < len(records) else None
        if record is None or (result.prompt, result.id) != (record.prompt, record.id):
            raise typer.BadParameter(
                f"--resume: {trace} holds an answer to another prompt than number {index + 1}. "
                "Hint: give the same prompts in the same order, or another --trace FILE"
            )
        if result.settings_hash not in (None, settings_hash):
            raise typer.BadParameter(
                f"--resume: {trace} holds answers that were generated with other settings. "
                "Hint: give the same options and config file, or another --trace FILE"
            )
        if result.finish_reason not in ("cancelled", "error"):
            known[index, result.sample_index] = result
    return known


def _empty(trace: Path | None) -> None:
    if trace is not None:
        write_jsonl([], trace)


def _settings_hash(config: StarsConfig) -> str:
    """Return a hash of what the text of an answer depends on: not of speed, nor of `n`."""
    sampling, align = config.sampling, config.with_thresholds()
    if sampling != "model":
        sampling = sampling.replace(n=1)
    align = align.replace(num_candidates=1, keep_rejected_text=False)
    return config.replace(sampling=sampling, align=align, engine=EngineParams()).content_hash()


def _first_text(config: StarsConfig, count: int) -> str:
    calibrates = config.with_thresholds().schedule.kind == "auto"  # type: ignore[union-attr]
    if calibrates:
        return "calibrating thresholds, unless they are cached"
    return "drafting the first segment" if count == 1 else "generating"


def _renumbered(events: Iterator[SegmentEvent], prompts: Sequence[int]) -> Iterator[StarsResult]:
    """Yield the results of a stream, with the numbers of all prompts."""
    for event in events:
        if event.result is not None:
            yield event.result.replace(prompt_index=prompts[event.result.prompt_index])


def _shown_as_text(events: Iterator[SegmentEvent], wait: Wait) -> Iterator[StarsResult]:
    for event in events:
        wait.end()
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
    found: Iterator[StarsResult],
    order: Sequence[Key],
    known: dict[Key, StarsResult],
    wait: Wait,
) -> Iterator[StarsResult]:
    """Yield all results in order, and show how many have finished and the time left."""
    columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    ended = dict(known)
    following = iter(order)
    wanted = next(following, None)
    left = TimeLeft()
    with Progress(*columns, console=messages, disable=not messages.shows_progress) as progress:
        task = progress.add_task("", total=len(order), completed=len(known))
        if messages.shows_progress:
            wait.end()
        while wanted in ended:
            yield ended.pop(wanted)
            wanted = next(following, None)
        for count, result in enumerate(found, 1):
            key = (result.prompt_index, result.sample_index)
            if key not in known:
                ended[key] = result
            progress.advance(task)
            so_far = len(known) + count
            share = f"{so_far} of {len(order)} answers"
            wait.update(f"{share}{left.said(count, len(order) - len(known))}", aloud=False)
            while wanted in ended:
                yield ended.pop(wanted)
                wanted = next(following, None)

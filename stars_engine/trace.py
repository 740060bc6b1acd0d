"""Results as records: JSON lines for programs, and a readable transcript."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from math import isnan
from pathlib import Path

from stars_engine.errors import ConfigError
from stars_engine.files.disk import append_lines, file_error, shown_path, why_not, write_parts
from stars_engine.problems import HINT
from stars_engine.types import Attempt, Segment, StarsResult, Usage

logger = logging.getLogger(__name__)

_TITLE = "results"


def write_jsonl(results: Iterable[StarsResult], path: str | Path, *, append: bool = False) -> None:
    """Write one result per line; `read_jsonl` reads them back.

    Args:
        results: The results, in order; may be a generator.
        path: The file.
        append: Append each result as it arrives, so that a crash loses none of the earlier ones.
            An incomplete last line from a crash is removed first. If False, the file is replaced
            once all results have arrived.

    Raises:
        ConfigError: The file cannot be written. Its old content, without incomplete lines,
            remains.
    """
    if append:
        for result in results:
            append_lines(path, _line(result), _TITLE, is_whole=_is_result)
    else:
        write_parts(path, map(_line, results), _TITLE)


def read_jsonl(path: str | Path) -> Iterator[StarsResult]:
    """Yield the results of a file, in order.

    A last line without its newline that is not a result was cut off by a crash: it is omitted, with
    a logged warning. A file that does not begin like a result is another kind of file.

    Raises:
        ConfigError: The file cannot be read, or a line is not a result; the message has its number.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if not text.strip():
                    continue
                result = _result(text)
                if isinstance(result, StarsResult):
                    yield result
                elif line.endswith(b"\n") or (number == 1 and not text.startswith(b"{")):
                    fix = "give what --trace or --json wrote" if number == 1 else "remove the line"
                    message = f"line {number} is not a result: {result}. Hint: {fix}"
                    raise file_error(path, _TITLE, message)
                else:
                    logger.warning(
                        "%s, line %d: torn by an earlier crash, and left out",
                        shown_path(path),
                        number,
                    )
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise file_error(path, _TITLE, f"cannot be read: {why_not(error)}") from None


def _line(result: StarsResult) -> bytes:
    return result.model_dump_json().encode() + b"\n"


def _result(line: bytes) -> StarsResult | str:
    """Read a line; if it is not a result, return why."""
    try:
        return StarsResult.model_validate_json(line.decode())
    except UnicodeDecodeError as error:
        return f"byte {error.start} is not UTF-8"
    except ConfigError as error:
        return str(error).partition(f". {HINT}")[0]


def _is_result(line: bytes) -> bool:
    return isinstance(_result(line), StarsResult)


def transcript(result: StarsResult) -> str:
    """Return a readable transcript: every segment with its attempts, and the totals."""
    lines = [
        f"{index:>3}  {_describe(segment)}\n     {segment.text!r}"
        for index, segment in enumerate(result.segments)
    ]
    if result.abandoned_attempts:
        rewards = ", ".join(map(_reward, result.abandoned_attempts))
        lines.append(f"  -  {len(result.abandoned_attempts)} attempts abandoned, rewards {rewards}")
    usage = result.usage
    reward = "none" if result.reward is None else f"{result.reward:.3g}"
    lines.append(
        f"end  {result.finish_reason}, reward {reward}, seed {result.seed}\n"
        f"     {tokens_in_words(usage)}, {usage.num_reward_calls} reward calls, "
        f"acceptance {usage.acceptance_rate:.2f}, {usage.num_forced} forced, "
        f"{usage.duration_s:.2f} s"
    )
    return "\n".join(lines)


def tokens_in_words(usage: Usage) -> str:
    """Return the numbers of kept, drafted and surplus tokens as text."""
    ahead = f"{usage.num_lookahead_tokens} read ahead, " if usage.num_lookahead_tokens else ""
    return (
        f"{usage.num_kept_tokens} tokens kept of {usage.num_drafted_tokens} drafted "
        f"(+{ahead}{usage.num_surplus_tokens} surplus)"
    )


def _describe(segment: Segment) -> str:
    if segment.reward is None or segment.threshold is None:
        return "unjudged" if segment.verdict == "unjudged" else f"{segment.verdict}, not judged"
    rejected = [_reward(a) for a in segment.attempts if a.verdict == "rejected"]
    if isnan(segment.threshold):  # Best-of-N has none
        others = f", of the others {', '.join(rejected)}" if rejected else ""
        return f"the best of {segment.num_attempts}, reward {segment.reward:.3g}{others}"
    kept = next((a for a in segment.attempts if a.verdict != "rejected"), None)
    reward = f"{segment.reward:.3g}" if kept is None else _reward(kept)
    after = f", after rejecting {', '.join(rejected)}" if rejected else ""
    by = "" if segment.alternative is None else f" by alternative {segment.alternative}"
    return (
        f"{segment.verdict}, reward {reward} against {segment.threshold:.3g}, "
        f"attempt {segment.num_attempts}{by}{after}"
    )


def _reward(attempt: Attempt) -> str:
    """Format a reward, and the parts of a composite reward."""
    if attempt.parts is None:
        return f"{attempt.reward:.3g}"
    parts = ", ".join(
        f"{_name(name)} {'failed' if value is None else format(value, '.3g')}"
        for name, value in attempt.parts.items()
    )
    return f"{attempt.reward:.3g} ({parts})"


def _name(part: str) -> str:
    """Write the name of a composite's part; as `repr` has it, where not all of it is visible."""
    return part if part.isprintable() else repr(part)

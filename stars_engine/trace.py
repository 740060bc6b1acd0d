"""Results as records: JSON lines for programs, and a readable transcript."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from stars_engine.types import Attempt, Segment, StarsResult, Usage


def write_jsonl(results: Iterable[StarsResult], path: str | Path, *, append: bool = False) -> None:
    """Write one result per line; `read_jsonl` reads them back."""
    with Path(path).open("a" if append else "w", encoding="utf-8") as file:
        file.writelines(result.model_dump_json() + "\n" for result in results)


def read_jsonl(path: str | Path) -> Iterator[StarsResult]:
    """Yield the results of a file, in order."""
    with Path(path).open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield StarsResult.model_validate_json(line)


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
    kept = next((a for a in segment.attempts if a.verdict != "rejected"), None)
    reward = f"{segment.reward:.3g}" if kept is None else _reward(kept)
    after = f", after rejecting {', '.join(rejected)}" if rejected else ""
    return (
        f"{segment.verdict}, reward {reward} against {segment.threshold:.3g}, "
        f"attempt {segment.num_attempts}{after}"
    )


def _reward(attempt: Attempt) -> str:
    """Format a reward, and the parts of a composite reward."""
    if attempt.parts is None:
        return f"{attempt.reward:.3g}"
    parts = ", ".join(
        f"{name} {'failed' if value is None else format(value, '.3g')}"
        for name, value in attempt.parts.items()
    )
    return f"{attempt.reward:.3g} ({parts})"

"""Results as HTML: kept segments coloured by their margin, rejected drafts struck through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from math import isnan
from typing import TYPE_CHECKING

from stars_engine.display.charts import reward_chart
from stars_engine.display.pages import document

if TYPE_CHECKING:
    from stars_engine.types import Attempt, Segment, StarsResult

_STYLE = """
.stars { border: 1px solid #8884; border-radius: 6px; padding: .7rem 1rem; margin: 1rem 0;
  overflow-wrap: anywhere; }
.stars .text { white-space: pre-wrap; }
.stars .prompt { opacity: .65; }
.stars .segment { border-radius: 3px; padding: .1em 0; border-right: 2px solid #8886; }
.stars svg { width: 100%; max-width: 38.4rem; min-width: 0; background: none; margin-top: .4rem; }
.stars del { opacity: .7; }
.stars .facts { font-size: .85rem; opacity: .8; margin: .5rem 0 0; }
.stars details { font-size: .85rem; margin-top: .4rem; }
.stars ol { padding-left: 2rem; } .stars li { margin: .25rem 0; white-space: pre-wrap; }
"""
_GREEN, _RED, _AMBER = "46 160 67", "218 54 51", "210 153 34"


def results_page(results: Iterable[StarsResult], title: str) -> str:
    """Return a self-contained page of results."""
    cards = list(map(_card, results))
    count = "1 answer" if len(cards) == 1 else f"{len(cards)} answers"
    body = f"<h1>{escape(title)}</h1>\n<p>{count}. {_legend()}</p>\n" + "\n".join(cards)
    return document(title, body, style=_STYLE)


def result_html(result: StarsResult) -> str:
    """Return one result for a notebook."""
    return f"<style>{_STYLE}</style>{_card(result)}"


def margin_of(segment: Segment) -> float | None:
    """Return reward minus threshold of a kept segment; None if it had no threshold."""
    if segment.reward is None or not _has_threshold(segment):
        return None
    return segment.reward - segment.threshold  # type: ignore[operator]


def scale_of(result: StarsResult) -> float:
    """Return the largest finite margin of a result, to which its colours are relative."""
    margins = (margin_of(segment) for segment in result.segments)
    sizes = [abs(m) for m in margins if m is not None and abs(m) < float("inf")]
    return max(sizes, default=0.0) or 1.0


def facts_of(result: StarsResult) -> str:
    """Return the totals of a result as one line of text."""
    usage = result.usage
    reward = "none" if result.reward is None else f"{result.reward:.3g}"
    times = usage.num_generated_tokens / usage.num_kept_tokens if usage.num_kept_tokens else 0
    return (
        f"{result.finish_reason} · reward {reward} · {usage.num_kept_tokens} tokens kept of "
        f"{usage.num_drafted_tokens} drafted and {usage.num_generated_tokens} generated"
        f"{f' ({times:.1f} for each)' if times else ''} · {_counted(usage.num_attempts)} · "
        f"{usage.num_forced} forced · seed {result.seed} · {usage.duration_s:.2f} s"
    )


def verdict_of(segment: Segment) -> str:
    """Return how a segment was judged as one line of text."""
    if segment.reward is None or segment.threshold is None:
        return segment.verdict
    if not _has_threshold(segment):
        return f"reward {segment.reward:.3g}, the best of {segment.num_attempts}"
    sign = "≥" if segment.reward >= segment.threshold else "<"
    by = "" if segment.alternative is None else f", alternative {segment.alternative}"
    return (
        f"{segment.verdict}, reward {segment.reward:.3g} {sign} threshold "
        f"{segment.threshold:.3g}, {_counted(segment.num_attempts)}{by}"
    )


def rejection_of(attempt: Attempt) -> str:
    """Return the reward of a rejected draft, and why it was rejected, as text."""
    if not attempt.eligible:
        return f"{attempt.reward:.3g}, not eligible"
    if not _has_threshold(attempt):
        return f"{attempt.reward:.3g}"
    return f"{attempt.reward:.3g} < {attempt.threshold:.3g}"


def _has_threshold(judged: Segment | Attempt) -> bool:
    """Whether there was a threshold; Best-of-N has none, which is written as nan."""
    return judged.threshold is not None and not isnan(judged.threshold)


def _counted(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count} attempts"


def rejected_of(segment: Segment) -> list[Attempt]:
    """Return the attempts of a segment that were not kept."""
    return [attempt for attempt in segment.attempts if attempt.verdict == "rejected"]


def _legend() -> str:
    return (
        f"A segment is <span style='background: rgb({_GREEN} / .35)'>green</span> the more its "
        "reward is above its threshold, "
        f"<span style='background: rgb({_AMBER} / .35)'>amber</span> if it is below, and "
        f"<span style='background: rgb({_RED} / .35)'>red</span> if it was kept although no draft "
        "was accepted. Rejected drafts are struck through. Dots are rewards, hollow ones those of "
        "rejected drafts; the line is the threshold."
    )


def _card(result: StarsResult) -> str:
    scale = scale_of(result)
    segments = "".join(_segment(segment, scale) for segment in result.segments)
    name = f"<b>{escape(str(result.id))}</b> " if result.id is not None else ""
    return (
        f"<div class='stars'>{name}<div class='text'>{_prompt(result)}{segments}</div>"
        f"<p class='facts'>{escape(facts_of(result))}</p>{reward_chart(result)}"
        f"{_attempts(result)}</div>"
    )


def prompt_of(result: StarsResult) -> str:
    """Return the prompt of a result as text, with a newline before an answer on its own."""
    if result.prompt is None:
        return ""
    if not isinstance(result.prompt, str):
        return "".join(f"{m.role}: {m.content}\n" for m in result.prompt.messages)
    return result.prompt if result.text[:1].isspace() else f"{result.prompt}\n"


def _prompt(result: StarsResult) -> str:
    return f"<span class='prompt'>{escape(prompt_of(result))}</span>"


def _segment(segment: Segment, scale: float) -> str:
    margin = margin_of(segment)
    colour, strength = _GREEN, 0.0
    if segment.forced:
        colour, strength = _RED, 0.35
    elif margin is not None:
        colour = _GREEN if margin >= 0 else _AMBER
        strength = 0.08 + 0.42 * min(1.0, abs(margin) / scale)
    return (
        f"<span class='segment' style='background: rgb({colour} / {strength:.2f})' "
        f"title='{escape(verdict_of(segment), quote=True)}'>{escape(segment.text)}</span>"
    )


def _attempts(result: StarsResult) -> str:
    """Return the segments with their rejected drafts, folded."""
    rows = "".join(_steps(result))
    if not rows:
        return ""
    return f"<details><summary>attempts, segment by segment</summary><ol>{rows}</ol></details>"


def _steps(result: StarsResult) -> Iterator[str]:
    for segment in result.segments:
        drafts = "".join(map(_rejected, rejected_of(segment)))
        yield f"<li>{drafts}<b>{escape(segment.text)}</b> {escape(verdict_of(segment))}</li>"
    if result.abandoned_attempts:
        yield f"<li>{''.join(map(_rejected, result.abandoned_attempts))}<b>nothing kept</b></li>"


def _rejected(attempt: Attempt) -> str:
    text = "a draft" if attempt.text is None else attempt.text
    return f"<del>{escape(text)}</del> {escape(rejection_of(attempt))}\n"

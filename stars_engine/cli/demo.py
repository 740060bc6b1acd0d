"""`stars demo`: compare plain sampling with STARS on the embedded pair."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stars_engine.cli.loading import loaded
from stars_engine.cli.output import visible
from stars_engine.config import SamplingParams, StarsConfig
from stars_engine.types import Segment, SegmentEvent, StarsResult

DEMO_PROMPTS = [
    "I watched this film last night and",
    "The acting in this movie",
    "My wife and I went to see it because",
    "From the very first scene,",
    "I had heard so much about this one that",
    "The director",
]
NUM_SHOWN = 2
NUM_REJECTED_SHOWN = 2


def demo_command(
    prompts: Annotated[list[str] | None, typer.Argument(help="Beginnings of reviews.")] = None,
    *,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same texts.")] = 0,
    samples: Annotated[int, typer.Option(min=1, help="Answers per prompt and arm.")] = 4,
) -> None:
    """Show plain sampling beside STARS, segment by segment. Works offline."""
    run_demo(prompts or DEMO_PROMPTS, seed=seed, num_samples=samples)


def run_demo(prompts: Sequence[str], *, seed: int, num_samples: int) -> None:
    """Show two complete answers, and averages over all prompts and samples."""
    console = Console(highlight=False)
    started = time.monotonic()
    console.print(
        "[bold]STARS demo[/]: a tiny language model of movie reviews, steered by a reward model "
        "that reads how positive a review is. The model's weights are not touched: segments that "
        "score too low are drafted again.\n"
        f"At most {NUM_REJECTED_SHOWN} rejected drafts are shown per segment.\n"
    )
    config = StarsConfig(sampling=SamplingParams(seed=seed, n=num_samples))
    with loaded(config) as (engine, wait):
        wait.end()
        # The answers fill a batch, so one draft of each at a time avoids surplus drafts.
        align = engine.config.align.replace(num_candidates=1, keep_rejected_text=True)
        with console.status("averaging over all prompts"):
            plain = engine.vanilla(list(prompts))
            events = engine.stream(list(prompts), align=align)
            aligned = show_answers(console, prompts, plain[::num_samples], events)
            ratio = _num_generated(aligned) / _num_generated(plain)
            n = max(2, round(ratio))  # Best-of-N for the same number of tokens
            best = engine.best_of_n(list(prompts), n)
        arms = {"plain": plain, f"Best-of-{n}": best, "STARS": aligned}
        console.print(_summary(arms))
        gain = _mean_reward(aligned) - _mean_reward(plain)
        console.print(
            f"Reward gained over plain sampling: [bold]{gain:+.2f}[/] (log-odds of a positive "
            f"review, mean of {len(aligned)} answers).\nTokens generated: {ratio:.1f} times those "
            f"of plain sampling. Wall time {time.monotonic() - started:.1f} s, loading included.\n"
            "The reported reward is the one that steered the model, so it shows that steering "
            "works, not that a reader would agree.\n"
            'Next: stars generate "The best thing about it", stars doctor, stars --help'
        )


def show_answers(
    console: Console,
    prompts: Sequence[str],
    plain: Sequence[StarsResult],
    events: Iterable[SegmentEvent],
) -> list[StarsResult]:
    """Print the first answers to the first prompts segment by segment as they come.

    Args:
        console: Where to print.
        prompts: All prompts.
        plain: The first plain answer to each.
        events: The events of all aligned answers.

    Returns:
        All aligned answers, in order.
    """
    results: dict[tuple[int, int], StarsResult] = {}
    shown_index = -1
    for event in _in_turn(events, min(NUM_SHOWN, len(prompts)), results):
        prompt = (_shown(console, prompts[event.prompt_index]), "bold")
        if event.prompt_index != shown_index:
            shown_index = event.prompt_index
            title = f"plain sampling: reward {plain[shown_index].reward:+.2f}"
            text = Text.assemble(prompt, _shown(console, plain[shown_index].text))
            console.print(Panel(text, title=title, style="dim"))
            console.print(Text.assemble(prompt, (" …", "dim")))
        if event.segment is not None:
            _print_segment(console, event.segment)
        if event.result is not None:
            title = f"STARS: reward {event.result.reward or 0.0:+.2f}"
            text = Text.assemble(prompt, _shown(console, event.result.text))
            console.print(Panel(text, title=title, border_style="green"))
            console.print()
    return [results[key] for key in sorted(results)]


def _in_turn(
    events: Iterable[SegmentEvent], num_shown: int, results: dict[tuple[int, int], StarsResult]
) -> Iterator[SegmentEvent]:
    """Yield the events to show, one answer after another, and record all results."""
    waiting: list[deque[SegmentEvent]] = [deque() for _ in range(num_shown)]
    turn = 0
    for event in events:
        if event.result is not None:
            results[event.prompt_index, event.sample_index] = event.result
        if event.sample_index == 0 and event.prompt_index < num_shown:
            waiting[event.prompt_index].append(event)
        while turn < num_shown and waiting[turn]:
            shown = waiting[turn].popleft()
            yield shown
            turn += shown.result is not None


def _print_segment(console: Console, segment: Segment) -> None:
    rejected = [attempt for attempt in segment.attempts if attempt.verdict == "rejected"]
    for attempt in rejected[-NUM_REJECTED_SHOWN:]:
        line = Text(f"  {attempt.reward:+6.2f} < {attempt.threshold:+5.2f}  ", "red")
        line.append(_shown(console, _on_one_line(attempt.text or "")), "dim strike")
        console.print(line, overflow="ellipsis", no_wrap=True)
    sign = "forced" if segment.forced else "≥"
    line = Text(
        f"  {segment.reward or 0.0:+6.2f} {sign} {segment.threshold or 0.0:+5.2f}  ", "green"
    )
    number = f"  (attempt {segment.num_attempts})"
    text = Text(_shown(console, _on_one_line(segment.text)))
    text.truncate(console.width - line.cell_len - len(number), overflow="ellipsis")
    console.print(Text.assemble(line, text, (number, "dim")), no_wrap=True)


def _summary(arms: dict[str, list[StarsResult]]) -> Table:
    table = Table(title="all prompts")
    table.add_column("")
    for name in (
        "mean\nreward",
        "positive",
        "tokens\ngenerated",
        "tokens\nkept",
        "forced\nsegments",
    ):
        table.add_column(name, justify="right")
    for name, results in arms.items():
        rewards = [result.reward or 0.0 for result in results]
        kept = sum(result.usage.num_kept_tokens for result in results)
        forced = sum(result.usage.num_forced for result in results)
        segments = sum(len(result.segments) for result in results)
        table.add_row(
            name,
            f"{fmean(rewards):+.2f}",
            f"{sum(reward > 0 for reward in rewards) / len(rewards):.0%}",
            str(_num_generated(results)),
            str(kept),
            f"{forced} of {segments}" if name == "STARS" else "",
        )
    return table


def _num_generated(results: Sequence[StarsResult]) -> int:
    return sum(r.usage.num_generated_tokens for r in results)


def _mean_reward(results: Sequence[StarsResult]) -> float:
    return fmean(result.reward or 0.0 for result in results)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _shown(console: Console, text: str) -> str:
    return visible(text) if console.is_terminal else text

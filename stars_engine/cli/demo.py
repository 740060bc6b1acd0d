"""`stars demo`: what plain sampling writes, and what STARS keeps, on the embedded pair."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stars_engine.config import SamplingParams, StarsConfig
from stars_engine.engine import StarsEngine
from stars_engine.types import Segment, StarsResult

DEMO_PROMPTS = [
    "I watched this film last night and",
    "The acting in this movie",
    "My wife and I went to see it because",
    "From the very first scene,",
    "I had heard so much about this one that",
    "The director",
]
NUM_SHOWN = 2


def run_demo(prompts: Sequence[str], *, seed: int, num_samples: int) -> None:
    """Show two answers in full and the averages over all prompts and samples."""
    import torch

    # Matrices this small gain nothing from a second thread, and wait for it on a busy machine.
    torch.set_num_threads(1)
    console = Console(highlight=False)
    started = time.monotonic()
    console.print(
        "[bold]STARS demo[/]: a tiny language model of movie reviews, steered by a reward model "
        "that reads how positive\na review is. The model's weights are not touched: segments that "
        "score too low are drafted again.\n"
    )
    engine = StarsEngine(StarsConfig(sampling=SamplingParams(seed=seed, n=num_samples)))
    with console.status("loading the embedded pair"):
        engine.load()
    for prompt in prompts[:NUM_SHOWN]:
        show_prompt(console, engine, prompt)
    prompt_list = list(prompts)
    with console.status("averaging over all prompts"):
        plain = engine.vanilla(prompt_list)
        aligned = engine.generate(prompt_list)
        spent = sum(r.usage.num_drafted_tokens for r in aligned)
        ratio = spent / sum(r.usage.num_drafted_tokens for r in plain)
        n = max(2, round(ratio))
        best = engine.best_of_n(prompt_list, n)
    arms = {"plain sampling": plain, f"Best-of-{n}": best, "STARS": aligned}
    console.print(_summary(arms))
    gain = _mean_reward(aligned) - _mean_reward(plain)
    console.print(
        f"Reward gained over plain sampling: [bold]{gain:+.2f}[/] (log-odds of a positive review, "
        f"mean of {len(aligned)} answers).\nTokens spent: {ratio:.1f} times those of plain "
        f"sampling. Wall time {time.monotonic() - started:.1f} s, loading included.\n"
        "The pair is a demonstration: its judge of success is its own guide. "
        'Next: stars generate "The best thing about it", stars doctor, stars --help'
    )


def show_prompt(console: Console, engine: StarsEngine, prompt: str) -> None:
    """Print one plain answer, and one aligned answer segment by segment as it comes."""
    sampling = engine.sampling.replace(n=1)
    align = engine.config.align.replace(keep_rejected_text=True)
    [plain] = engine.vanilla(prompt, sampling=sampling)
    text = Text.assemble((prompt, "bold"), plain.text)
    console.print(Panel(text, title=f"plain sampling: reward {plain.reward:+.2f}", style="dim"))
    console.print(Text.assemble((prompt, "bold"), (" …", "dim")))
    for event in engine.stream(prompt, sampling=sampling, align=align):
        if event.segment is not None:
            _print_segment(console, event.segment)
        if event.result is not None:
            text = Text.assemble((prompt, "bold"), event.result.text)
            title = f"STARS: reward {event.result.reward or 0.0:+.2f}"
            console.print(Panel(text, title=title, border_style="green"))
            console.print()


def _print_segment(console: Console, segment: Segment) -> None:
    rejected = [attempt for attempt in segment.attempts if attempt.verdict == "rejected"]
    for attempt in rejected[-2:]:
        line = Text(f"  {attempt.reward:+6.2f} < {attempt.threshold:+5.2f}  ", "red")
        line.append(_on_one_line(attempt.text or ""), "dim strike")
        console.print(line, overflow="ellipsis", no_wrap=True)
    sign = "forced" if segment.forced else "≥"
    line = Text(
        f"  {segment.reward or 0.0:+6.2f} {sign} {segment.threshold or 0.0:+5.2f}  ", "green"
    )
    line.append(_on_one_line(segment.text))
    line.append(f"  (attempt {segment.num_attempts})", "dim")
    console.print(line, overflow="ellipsis", no_wrap=True)


def _summary(arms: dict[str, list[StarsResult]]) -> Table:
    table = Table(title="all prompts")
    for name in ("", "mean reward", "positive", "drafted tokens", "kept tokens", "forced segments"):
        table.add_column(name, justify="right" if name else "left")
    for name, results in arms.items():
        rewards = [result.reward or 0.0 for result in results]
        drafted = sum(result.usage.num_drafted_tokens for result in results)
        kept = sum(result.usage.num_kept_tokens for result in results)
        forced = sum(result.usage.num_forced for result in results)
        segments = sum(len(result.segments) for result in results)
        table.add_row(
            name,
            f"{fmean(rewards):+.2f}",
            f"{sum(reward > 0 for reward in rewards) / len(rewards):.0%}",
            str(drafted),
            str(kept),
            f"{forced} of {segments}" if name == "STARS" else "",
        )
    return table


def _mean_reward(results: Sequence[StarsResult]) -> float:
    return fmean(result.reward or 0.0 for result in results)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())

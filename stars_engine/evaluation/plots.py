"""Plots of an evaluation, as SVG text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil, floor, log2
from typing import Any

from stars_engine.calibration.svg import svg
from stars_engine.evaluation.figures import ArmFigures, Evaluation, HalfFigures
from stars_engine.schedules import Estimate

_WIDE = (7.6, 4.2)


def all_plots(evaluation: Evaluation) -> dict[str, str]:
    """Return all plots that the evaluation has data for, by name."""
    fresh = evaluation.fresh
    judges = list(next(iter(fresh.arms.values())).judges)
    found = {
        **{f"tokens-{judge}": cost_curve(fresh, judge) for judge in judges},
        **{f"seconds-{judge}": time_curve(fresh, judge) for judge in judges},
        "attempts": attempts(fresh),
        "acceptance": acceptance(fresh),
        "difficulty": difficulty(fresh),
        "latency": latency(fresh),
        "borders": trust_borders(evaluation),
        "advantage": predicted_and_measured(evaluation),
    }
    return {name: text for name, text in found.items() if text is not None}


def cost_curve(half: HalfFigures, judge: str) -> str:
    """Plot the judge's reward over drafted tokens: the arms, and Best-of-N for every N."""

    def draw(axes: Any) -> None:
        if half.curve is not None:
            values = half.curve.judges[judge]
            axes.plot(range(1, len(values) + 1), values, "-", color="0.5", label="Best-of-N")
        _points(axes, half, judge, lambda arm: arm.costs.times)
        axes.set(xlabel="drafted tokens over those of a plain answer", xscale="log")
        _plain_ticks(axes, [1, 2, 4, 8, 16, 32])

    return svg(draw, _WIDE)


def time_curve(half: HalfFigures, judge: str) -> str:
    """Plot the judge's reward over wall seconds per answer, at the recipe's batch size."""

    def seconds(arm: ArmFigures) -> Estimate:
        value = arm.costs.wall_s
        return Estimate(value=value, low=value, high=value)

    def draw(axes: Any) -> None:
        _points(axes, half, judge, seconds)
        axes.set(xlabel="wall seconds per answer", xscale="log")
        values = [arm.costs.wall_s for arm in half.arms.values()]
        powers = range(floor(log2(min(values))), ceil(log2(max(values))) + 1)
        _plain_ticks(axes, [float(f"{2.0**power:.2g}") for power in powers])

    return svg(draw, _WIDE)


def attempts(half: HalfFigures) -> str | None:
    """Plot the distribution of draws per segment; None if no arm judges segments."""
    arms = [(arm, arm.segments) for arm in half.arms.values() if arm.segments and _tests(arm)]
    if not arms:
        return None

    def draw(axes: Any) -> None:
        for arm, segments in arms:
            share = [count / segments.num_segments for count in segments.histogram]
            axes.plot(range(1, len(share) + 1), share, ".-", label=arm.name)
        axes.set(xlabel="draws of a segment", ylabel="share of segments", yscale="log")
        axes.legend(fontsize=8.5)

    return svg(draw, _WIDE)


def acceptance(half: HalfFigures) -> str | None:
    """Plot the acceptance of draws by segment index."""
    arms = [
        (arm, arm.segments)
        for arm in half.arms.values()
        if arm.segments and _tests(arm) and len(arm.segments.acceptance) > 1
    ]
    if not arms:
        return None

    def draw(axes: Any) -> None:
        for arm, segments in arms:
            count = len(segments.acceptance)
            axes.plot(
                [(index + 0.5) / count for index in range(count)],
                segments.acceptance,
                ".-",
                label=arm.name,
            )
        axes.set(xlabel="place in the longest answer", ylabel="accepted draws", ylim=(0, 1.02))
        axes.legend(fontsize=8.5)

    return svg(draw, _WIDE)


def difficulty(half: HalfFigures) -> str | None:
    """Plot the cost of prompts from hard to easy."""
    arms = [arm for arm in half.arms.values() if arm.difficulty and _tests(arm)]
    if not arms:
        return None

    def draw(axes: Any) -> None:
        for arm in arms:
            axes.plot(
                [part.plain_reward for part in arm.difficulty],
                [part.times for part in arm.difficulty],
                ".-",
                label=arm.name,
            )
        axes.set(
            xlabel="guide reward of plain answers to the prompts: hard to easy",
            ylabel="drafted tokens over plain",
        )
        axes.legend(fontsize=8.5)

    return svg(draw, _WIDE)


def latency(half: HalfFigures) -> str | None:
    """Plot median and 95th percentile of seconds of a request, from hard to easy prompts."""
    arms = [arm for arm in half.arms.values() if arm.difficulty]
    if not arms:
        return None

    def draw(axes: Any) -> None:
        for arm in arms:
            place = [part.plain_reward for part in arm.difficulty]
            [line] = axes.plot(
                place, [part.seconds_p50 for part in arm.difficulty], ".-", label=arm.name
            )
            high = [part.seconds_p95 for part in arm.difficulty]
            axes.plot(place, high, ":", color=line.get_color())
        axes.set(
            xlabel="guide reward of plain answers to the prompts: hard to easy",
            ylabel="seconds: median, 95th percentile dotted",
            yscale="log",
        )
        axes.legend(fontsize=8.5)

    return svg(draw, _WIDE)


def trust_borders(evaluation: Evaluation) -> str | None:
    """Plot the correlation of rewards of unfinished text with the outcome."""
    trust = evaluation.trust
    if trust is None:
        return None

    def draw(axes: Any) -> None:
        tokens = [border.num_tokens for border in trust.borders]
        axes.plot(tokens, [border.spearman for border in trust.borders], label="Spearman")
        axes.plot(tokens, [border.pearson for border in trust.borders], "--", label="Pearson")
        axes.set(xlabel="tokens read", ylabel="correlation with the outcome", ylim=(-0.1, 1.05))
        axes.legend()

    return svg(draw)


def predicted_and_measured(evaluation: Evaluation) -> str | None:
    """Plot the advantage that trust predicts, and the measured one, over the segment length."""
    rows = list(advantages(evaluation))
    if len(rows) < 2:
        return None

    def draw(axes: Any) -> None:
        names = [str(length) for length, _, _ in rows]
        predicted = [value for _, value, _ in rows]
        below = [max(0.0, value.value - value.low) for value in predicted]
        above = [max(0.0, value.high - value.value) for value in predicted]
        values = [value.value for value in predicted]
        axes.errorbar(names, values, yerr=[below, above], fmt="o-", capsize=3, label="predicted")
        axes.plot(names, [value for _, _, value in rows], "s--", label="measured")
        axes.axhline(1, color="0.6", linestyle=":")
        axes.set(xlabel="segment_len", ylabel="gain over Best-of-N's at equal tokens")
        axes.legend()

    return svg(draw)


def advantages(evaluation: Evaluation) -> Iterator[tuple[int, Estimate, float]]:
    """Yield segment length, predicted and measured advantage over Best-of-N at equal tokens.

    Both are ratios of gains over plain sampling, by the first judge.
    """
    fresh, trust = evaluation.fresh, evaluation.trust
    if trust is None or fresh.curve is None:
        return
    predicted = {segment.segment_len: segment.advantage for segment in trust.segments}
    judge = next(iter(fresh.curve.judges))
    plain = fresh.curve.judges[judge][0]
    for arm in fresh.arms.values():
        own = arm.judges[judge]
        length = arm.settings.get("resolved", {}).get("segment_len")
        if arm.kind != "stars" or length not in predicted or own.over_equal_tokens is None:
            continue
        gain = own.reward.value - plain
        equal = gain - own.over_equal_tokens.value
        if equal > 0:
            yield length, predicted[length], gain / equal


def _points(
    axes: Any, half: HalfFigures, judge: str, cost: Callable[[ArmFigures], Estimate]
) -> None:
    markers = {"vanilla": "o", "best_of_n": "D", "stars": "*", "rejection": "s", "blockwise": "^"}
    for arm in half.arms.values():
        own, spent = arm.judges[judge].reward, cost(arm)
        axes.errorbar(
            [spent.value],
            [own.value],
            xerr=[_span(spent)[:1], _span(spent)[1:]],
            yerr=[_span(own)[:1], _span(own)[1:]],
            fmt=markers[arm.kind],
            markersize=8 if arm.kind == "stars" else 5,
            capsize=2,
            linewidth=1,
            label=arm.name,
        )
    axes.set(ylabel=f"reward of {judge}")
    axes.legend(fontsize=8.5)


def _tests(arm: ArmFigures) -> bool:
    """Whether an arm accepts or rejects drafts; the others draw a fixed number of times."""
    return arm.kind in ("stars", "rejection")


def _span(value: Estimate) -> list[float]:
    """Return how far the interval reaches below and above; 0 where it is unknown."""
    ends = (value.value - value.low, value.high - value.value)
    return [end if end > 0 else 0.0 for end in ends]


def _plain_ticks(axes: Any, ticks: Sequence[float]) -> None:
    """Label a logarithmic axis with plain numbers."""
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)

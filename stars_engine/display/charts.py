"""The rewards of a result as dots and its thresholds as a line, as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from stars_engine.types import StarsResult

_WIDTH, _HEIGHT, _LEFT, _PAD = 600, 140, 64, 12
_FILLS = {"accepted": "#2ea043", "forced": "#da3633"}  # of kept segments; others are hollow


class _Column(NamedTuple):
    """One segment: its threshold, and the reward and verdict of each of its attempts."""

    threshold: float | None
    rewards: Sequence[tuple[float, str]]


def reward_chart(result: StarsResult) -> str:
    """Return a chart with a column for each segment, kept or refused; "" if none was judged."""
    columns = list(_columns(result))
    values = [value for column in columns for value, _ in column.rewards]
    values += [column.threshold for column in columns if column.threshold is not None]
    if not values:
        return ""
    low, high = min(values), max(values)
    step = (_WIDTH - _LEFT - _PAD) / len(columns)

    def y(value: float) -> str:
        part = (value - low) / (high - low) if high > low else 0.5
        return f"{_HEIGHT - _PAD - part * (_HEIGHT - 2 * _PAD):.1f}"

    shapes = [
        f"<text x='0' y='{y(value)}' dy='5' font-size='16' fill='currentColor'>{value:.3g}</text>"
        for value in dict.fromkeys((low, high))
    ]
    line = ""
    for index, (threshold, rewards) in enumerate(columns):
        x = _LEFT + step * (index + 0.5)
        if threshold is not None:
            line += f"{'L' if line else 'M'}{x - step / 2:.1f} {y(threshold)}h{step:.1f}"
        for reward, verdict in rewards:
            fill = _FILLS.get(verdict)
            look = f"r='4' fill='{fill}'" if fill else "r='2.5' fill='none' stroke='#888'"
            shapes.append(f"<circle cx='{x:.1f}' cy='{y(reward)}' {look}/>")
    if line:
        shapes.append(f"<path d='{line}' fill='none' stroke='#6c7bff' stroke-width='2'/>")
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' "
        f"aria-label='Reward and threshold of each segment'>{''.join(shapes)}</svg>"
    )


def _columns(result: StarsResult) -> Iterator[_Column]:
    groups = [(segment.threshold, segment.attempts) for segment in result.segments]
    if result.abandoned_attempts:
        groups.append((result.abandoned_attempts[0].threshold, result.abandoned_attempts))
    for threshold, attempts in groups:
        rewards = [(each.reward, each.verdict) for each in attempts if math.isfinite(each.reward)]
        is_finite = threshold is not None and math.isfinite(threshold)
        yield _Column(threshold if is_finite else None, rewards)

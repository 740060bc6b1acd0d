"""Write an evaluation as a self-contained HTML page, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stars_engine.calibration.pages import render
from stars_engine.errors import needs_extra
from stars_engine.evaluation import plots
from stars_engine.evaluation.figures import ArmFigures, Evaluation, HalfFigures, ShownAnswer
from stars_engine.evaluation.store import name_of
from stars_engine.files.config_files import text_of
from stars_engine.files.disk import make_folder, write_file
from stars_engine.schedules import Estimate

_LOW, _HIGH = (214, 96, 77), (67, 147, 195)  # red to blue, distinguishable by most readers


def check_packages() -> None:
    """Check that all packages of the extra `eval` are installed, before long work.

    Raises:
        MissingExtraError: One is missing.
    """
    with needs_extra("eval"):
        import evalica  # noqa: F401, PLC0415
        import jinja2  # noqa: F401, PLC0415
        import matplotlib as mpl  # noqa: F401, PLC0415
        import scipy  # noqa: F401, PLC0415


def write_reports(evaluation: Evaluation, directory: str | Path) -> Path:
    """Write `report.html`, `report.json`, `arms.csv` and `plots/*.svg`; return the page's path.

    Raises:
        MissingExtraError: matplotlib or Jinja2 is not installed.
        ConfigError: A file cannot be written.
    """
    directory = make_folder(directory, "report")
    page = directory / "report.html"
    drawn = plots.all_plots(evaluation)
    write_file(page, html_of(evaluation, drawn), "report")
    write_file(
        directory / "report.json", evaluation.model_dump_json(indent=1, fallback=name_of), "report"
    )
    write_file(directory / "arms.csv", csv_of(evaluation), "report")
    folder = make_folder(directory / "plots", "plot")
    for name, text in drawn.items():
        write_file(folder / f"{name}.svg", text + "\n", "plot")
    return page


def html_of(evaluation: Evaluation, drawn: Mapping[str, str]) -> str:
    """Return the page with its plots; it needs no other file and no network."""
    fresh = evaluation.fresh
    judges = list(next(iter(fresh.arms.values())).judges)
    return render(
        "evaluation",
        "report.html.jinja",
        plots=drawn,
        filters={"interval": interval, "number": number, "percent": percent},
        evaluation=evaluation,
        recipe=evaluation.recipe,
        fresh=fresh,
        judges=judges,
        advantages=list(plots.advantages(evaluation)),
        samples=_by_prompt(evaluation.samples),
        config=text_of(evaluation.recipe, fallback=name_of),
    )


def csv_of(evaluation: Evaluation) -> str:
    """Return one line per half, arm and judge."""
    file = io.StringIO()
    rows = [
        row
        for half in (evaluation.tuning, evaluation.fresh)
        if half is not None
        for row in _rows(half)
    ]
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def interval(value: Estimate | None, form: str = "+.2f") -> str:
    """Format an estimate with its interval; empty for None."""
    if value is None:
        return ""
    if math.isnan(value.low):
        return number(value.value, form)
    return f"{value.value:{form}} [{value.low:{form}}, {value.high:{form}}]"


def number(value: float | None, form: str = ".2f") -> str:
    """Format a number; empty for None."""
    return "" if value is None else f"{value:{form}}"


def percent(value: float | None) -> str:
    """Format a share as a percentage; empty for None."""
    return number(value, ".1%")


def _rows(half: HalfFigures) -> Iterator[dict[str, Any]]:
    for arm in half.arms.values():
        for judge, own in arm.judges.items():
            yield {
                "half": half.half,
                "prompts": half.num_prompts,
                "arm": arm.name,
                "kind": arm.kind,
                "answers": arm.num_answers,
                "judge": judge,
                **_ends("reward", own.reward),
                **_ends("wins", own.wins),
                "wins_at_equal_length": own.wins_at_equal_length,
                **_ends("over_best_of_n_at_equal_tokens", own.over_equal_tokens),
                **_ends("over_largest_best_of_n", own.over_best_of),
                "as_good_as_best_of": own.as_good_as_best_of,
                **_ends("guide", arm.guide),
                **_ends("times", arm.costs.times),
                **arm.costs.model_dump(exclude={"times"}),
                **arm.texts.model_dump(),
                **_segment_values(arm),
                **{f"seconds_{name}": value for name, value in arm.latency.model_dump().items()},
                "guards_hold": arm.guards_hold,
            }


def _segment_values(arm: ArmFigures) -> dict[str, Any]:
    names = (
        "attempts_mean",
        "attempts_p50",
        "attempts_p95",
        "attempts_max",
        "forced",
    )
    return {name: None if arm.segments is None else getattr(arm.segments, name) for name in names}


def _ends(name: str, value: Estimate | None) -> dict[str, Any]:
    if value is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def _by_prompt(samples: Sequence[ShownAnswer]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Group samples by prompt, and give each segment the colour of its reward."""
    rewards = [
        segment.reward
        for sample in samples
        for segment in sample.segments
        if segment.reward is not None and math.isfinite(segment.reward)
    ]
    low, high = (min(rewards), max(rewards)) if rewards else (0.0, 0.0)
    found: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        shown = [(segment, _colour(segment.reward, low, high)) for segment in sample.segments]
        rejected = sum(len(segment.rejected) for segment in sample.segments)
        found.setdefault(sample.prompt, []).append(
            {"sample": sample, "segments": shown, "num_rejected": rejected}
        )
    return list(found.items())


def _colour(reward: float | None, low: float, high: float) -> str:
    """Return a colour between red (the lowest reward) and blue (the highest)."""
    if reward is None or not math.isfinite(reward):
        return "transparent"
    place = (reward - low) / (high - low) if high > low else 0.5
    side, strength = (_HIGH, 2 * place - 1) if place >= 0.5 else (_LOW, 1 - 2 * place)
    return f"rgba({side[0]}, {side[1]}, {side[2]}, {0.08 + 0.5 * strength:.2f})"

"""Write the trust report and the calibration as one HTML page with plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stars_engine.calibration.advice import verification_advice
from stars_engine.calibration.draw_limits import limits_in_words
from stars_engine.calibration.pages import render
from stars_engine.calibration.report import TrustReport
from stars_engine.calibration.svg import svg
from stars_engine.calibration.verify import Verification
from stars_engine.display.pages import document, table
from stars_engine.errors import needs_extra
from stars_engine.files.disk import write_file
from stars_engine.schedules import CalibratedSchedule, CurvePoint
from stars_engine.schedules.calibrated import WORTHWHILE

_TEMPLATE = "trust_report.html.jinja"
_STYLE = """
.advice li:first-child { font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def write_report(
    path: str | Path,
    report: TrustReport,
    schedule: CalibratedSchedule | None = None,
    verification: Verification | None = None,
) -> None:
    """Write a self-contained HTML page.

    Args:
        path: The file.
        report: The result of `trust_report`.
        schedule: The result of `calibrate`, to include.
        verification: The result of `verify`, to include.

    Raises:
        MissingExtraError: matplotlib or Jinja2 is not installed.
        ConfigError: The file cannot be written.
    """
    with needs_extra("eval"):
        from markupsafe import Markup  # noqa: PLC0415
    curve = schedule.curve if schedule is not None else report.curve
    plots = {
        "borders": svg(lambda axes: _plot_borders(axes, report)),
        "advantage": svg(lambda axes: _plot_advantage(axes, report)),
        "innovations": svg(lambda axes: _plot_innovations(axes, report)),
        "curve": svg(lambda axes: _plot_curve(axes, curve)) if curve else "",
    }
    tables = report.tables()
    notes = []
    if verification is not None:
        tables["verification"] = table(*verification.rows())
        notes += verification_advice(verification)
    limited = None if schedule is None else limits_in_words(schedule)
    if limited is not None:
        notes.append(limited)
    body = render(
        "calibration",
        _TEMPLATE,
        plots=plots,
        tables={name: Markup(text) for name, text in tables.items()},
        report=report,
        advice=[*notes, *report.advice],
        worthwhile=WORTHWHILE,
        verification=verification,
    )
    write_file(path, document("Trust report", body, style=_STYLE), "report")


def _plot_borders(axes: Any, report: TrustReport) -> None:
    tokens = [border.num_tokens for border in report.borders]
    axes.plot(tokens, [border.spearman for border in report.borders], label="Spearman")
    axes.plot(tokens, [border.pearson for border in report.borders], "--", label="Pearson")
    axes.set(xlabel="tokens read", ylabel="correlation with the outcome", ylim=(-0.1, 1.05))
    axes.legend()


def _plot_advantage(axes: Any, report: TrustReport) -> None:
    lengths = [str(segment.segment_len) for segment in report.segments]
    values = [segment.advantage.value for segment in report.segments]
    spans = [segment.advantage for segment in report.segments]
    below = [max(0.0, span.value - span.low) for span in spans]
    above = [max(0.0, span.high - span.value) for span in spans]
    axes.errorbar(lengths, values, yerr=[below, above], fmt="o", capsize=4)
    axes.axhline(WORTHWHILE, color="grey", linestyle=":")
    axes.set(xlabel="segment_len", ylabel="expected advantage")


def _plot_innovations(axes: Any, report: TrustReport) -> None:
    for segment in report.segments:
        if 2 <= len(segment.innovations) <= 32:
            ends = [segment.segment_len * (k + 1) for k in range(len(segment.innovations))]
            label = f"segment_len {segment.segment_len}"
            axes.plot(ends, segment.innovations, ".-", label=label)
    axes.set(xlabel="tokens read", ylabel="correlation of the innovation")
    if axes.lines:
        axes.legend()


def _plot_curve(axes: Any, curve: Sequence[CurvePoint]) -> None:
    offsets = [point.offset_sigmas for point in curve]
    axes.plot(offsets, [point.acceptance for point in curve], label="acceptance")
    axes.plot(offsets, [point.forced for point in curve], label="forced")
    axes.set(xlabel="standard deviations above the expected reward", ylim=(0, 1))
    costs = axes.twinx()
    costs.plot(offsets, [p.budget for p in curve], "k--", label="drafted over kept")
    costs.set(ylabel="drafted over kept tokens")
    lines, names = axes.get_legend_handles_labels()
    more, other = costs.get_legend_handles_labels()
    axes.legend(lines + more, names + other, loc="center left")

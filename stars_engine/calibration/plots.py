"""Write the trust report and the calibration as one HTML page with plots."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stars_engine.calibration.report import TrustReport
from stars_engine.calibration.trust import WORTHWHILE
from stars_engine.calibration.verify import Verification
from stars_engine.files.disk import write_file
from stars_engine.schedules import CalibratedSchedule, CurvePoint
from stars_engine.svg import svg

_ABOUT_BORDERS = (
    "Correlation, among answers to the same prompt, of the reward after a number of tokens with "
    "the outcome. It need not be high: the sum over the innovations of all segments counts."
)
_ABOUT_ADVANTAGE = (
    "Sum over segments of the correlation of their innovation with the outcome, over the "
    f"correlation of the final reward. Below {WORTHWHILE}, Best-of-N does as well."
)
_ABOUT_CURVE = (
    "Acceptance, drafted over kept tokens, and forced segments, if the threshold of every segment "
    "is a number of standard deviations above the expected reward."
)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
pre { background: #f4f4f2; padding: .8rem; overflow-x: auto; font-size: 13px; }
svg { max-width: 100%; height: auto; } h2 { margin-top: 2.2rem; }
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
        MissingExtraError: matplotlib is not installed.
        ConfigError: The file cannot be written.
    """
    advice = "".join(f"<p>{html.escape(line)}</p>" for line in report.advice)
    parts = [
        "<h1>How well does this reward judge unfinished text?</h1>",
        advice,
        f"<pre>{html.escape(report.summary())}</pre>",
        "<h2>Correlation of prefix and outcome</h2>",
        f"<p>{_ABOUT_BORDERS}</p>",
        svg(lambda axes: _plot_borders(axes, report)),
        "<h2>Expected advantage over Best-of-N</h2>",
        f"<p>{_ABOUT_ADVANTAGE}</p>",
        svg(lambda axes: _plot_advantage(axes, report)),
        "<h2>Innovation of each segment</h2>",
        svg(lambda axes: _plot_innovations(axes, report)),
    ]
    curve = schedule.curve if schedule is not None else report.curve
    if curve:
        parts += [
            "<h2>Cost of thresholds</h2>",
            f"<p>{_ABOUT_CURVE}</p>",
            svg(lambda axes: _plot_curve(axes, curve)),
        ]
    if verification is not None:
        parts += [
            f"<h2>Validation on {verification.num_prompts} other prompts</h2>",
            f"<pre>{html.escape(verification.summary())}</pre>",
        ]
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Trust report</title>"
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    write_file(path, page, "report")


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

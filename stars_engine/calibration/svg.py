"""Plots as SVG text for HTML pages."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from stars_engine.problems import needs_extra

_SIZE = (6.4, 3.6)  # inches
# Ids that only name groups; several plots of one page would share them. Others are hashes.
_GROUP_ID = re.compile(r' id="[a-zA-Z0-9_.]*_\d+"')
# A plot brings its own ground, so it stays readable on a page whose colors the reader chose by
# hand. matplotlib writes colors into the style of each element, which only `!important` overrides.
_COLORS = """
 <style>
  @media (prefers-color-scheme: dark) {
   .stars-plot text { fill: #e4e4e8; }
   .stars-plot [style*="fill: #ffffff"] { fill: #16181d !important; }
   .stars-plot [style*="stroke: #000000"] { stroke: #e4e4e8 !important; }
  }
 </style>"""


def svg(draw: Callable[[Any], None], size: tuple[float, float] = _SIZE) -> str:
    """Return a plot as SVG text, without a window or global state.

    The plot is dark where the reader prefers dark pages.

    Args:
        draw: Draws on the axes of matplotlib that it gets.
        size: Width and height in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("eval"):
        import matplotlib as mpl  # noqa: PLC0415
        from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stars", "font.size": 10.5}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.grid(alpha=0.3)
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return _with_dark_colors(_GROUP_ID.sub("", text[text.index("<svg") :]))


def _with_dark_colors(plot: str) -> str:
    head, end, body = plot.partition(">")
    return f'{head} class="stars-plot"{end}{_COLORS}{body}'

"""Curves as SVG, in the color and font of the page."""

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike

COLORS = (
    "#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#9d755d", "#1b9e9e", "#d67195", "#a5a12c",
    "#8c8c8c",
)  # fmt: skip
"""Colors that differ on white and on black."""
MAX_POINTS = 300
"""The most points of a curve. Longer curves are averaged piece by piece, so that the page stays small."""

_INK = "#012345"  # replaced by the color of the text
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9, "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.2,
    "axes.linewidth": 0.5, "xtick.major.width": 0.5, "ytick.major.width": 0.5,
    "xtick.minor.width": 0.3, "ytick.minor.width": 0.3,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"), _INK),
}  # fmt: skip


class Chart(NamedTuple):
    """
    Attributes:
        title: the heading.
        svg: the chart, without the names of its curves, which the page has to escape.
        legend: names and colors of the curves.
        broad: whether the chart is as wide as the page.
    """

    title: str
    svg: str
    legend: list[tuple[str, str]]
    broad: bool


def line_chart(
    title: str,
    curves: Mapping[str, ArrayLike],
    x_label: str,
    y_label: str,
    *,
    smooth: bool = False,
    log: bool = False,
    unit: bool = False,
    marker: str = "",
    broad: bool = False,
) -> Chart:
    """Draw curves.

    Args:
        curves: (N, 2) points by name.
        smooth: draw a running mean, with the points pale behind it.
        log: use a logarithmic scale if all values are above 0 and their range needs one.
        unit: both axes go from 0 to 1.
        marker: of each point, by matplotlib's name.
        broad: make the chart as wide as the page, not half as wide.
    """
    lines = [_thinned(np.asarray(points, dtype=float)) for points in curves.values()]
    # The style and the ids must not depend on the rest of the process.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(10.8, 3.4) if broad else (4.4, 2.5), layout="constrained")
        axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
        for color, (x, y) in zip(_colors(len(lines)), lines, strict=True):
            if smooth:
                axes.plot(x, y, color=color, alpha=0.3, linewidth=0.8)
            axes.plot(x, _running_mean(y) if smooth else y, color=color, marker=marker, markersize=3.5)
        values = np.concatenate([y for _, y in lines])
        if log and values.min() > 0 and values.max() > 10 * values.min():  # else the axis may have no tick
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if unit:
            axes.set(xlim=(0, 1), ylim=(0, 1.02))
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Chart(title, _inline(file.getvalue()), [*zip(curves, _colors(len(lines)), strict=True)], broad)


def _colors(count: int) -> Sequence[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _thinned(points: np.ndarray) -> np.ndarray:
    """Return (N, 2) points as (2, n), n at most :data:`MAX_POINTS`."""
    if len(points) > MAX_POINTS:
        points = np.array([part.mean(0) for part in np.array_split(points, MAX_POINTS)])
    return points.reshape(-1, 2).T


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over a fifteenth of the values; the outermost values are repeated at the ends."""
    half = len(values) // 30
    window = np.ones(2 * half + 1) / (2 * half + 1)
    return np.convolve(np.pad(values, half, mode="edge"), window, "valid")


def _inline(svg: str) -> str:
    """Return an SVG file as part of a page, without the file's header and without ids."""
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(width|height)="[\d.]+pt"|xmlns(:\w+)?="[^"]*"|version="[\d.]+"', "", svg, count=5)
    return svg.replace(_INK, "currentColor").replace("xlink:href", "href")

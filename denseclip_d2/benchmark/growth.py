"""How time and memory grow, as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..utils.atomic import atomic_write
from .arithmetic import ARITHMETIC
from .measure import Row

LABELS = {
    "classes": "classes (K)", "size": "pixels of an image (millions)", "batch": "images in a batch",
    "threads": "threads",
}  # fmt: skip
"""Of the axes of :class:`.settings.Case`."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with a column for each section and axis along which it was measured: time, memory below it.

    A line is a contender, the dashed one what arithmetic says. Along an axis, the others have the values of
    their section's first row.

    Args:
        rows: some of them at several places of an axis.
    """
    columns = [
        (axis, along) for section in _sections(rows) for axis in LABELS if (along := _along(section, axis))
    ]
    figure = Figure(figsize=(1 + 3.6 * len(columns), 6), layout="constrained")
    panels = figure.subplots(2, len(columns), squeeze=False)
    for (time, memory), (axis, along) in zip(panels.T, columns, strict=True):
        _draw_lines(time, axis, along, "milliseconds")
        _draw_lines(memory, axis, [row for row in along if row.megabytes is not None], "megabytes")
        time.set(title=along[0].section, ylabel="ms a run")
        memory.set(xlabel=LABELS[axis], ylabel="greatest memory (MB)")
        time.legend(fontsize="small")
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)


def _sections(rows: Sequence[Row]) -> list[list[Row]]:
    names = dict.fromkeys(row.section for row in rows if row.numbers)
    return [[row for row in rows if row.section == name] for name in names]


def _along(rows: Sequence[Row], axis: str) -> list[Row]:
    """Those that differ from the first along the axis alone; none where all are at one place of it."""
    first = rows[0].numbers
    along = [row for row in rows if {**row.numbers, axis: first[axis]} == first]
    return along if len({row.numbers[axis] for row in along}) > 1 else []


def _draw_lines(panel: Axes, axis: str, rows: Sequence[Row], quantity: str) -> None:
    unit = 1e6 if axis == "size" else 1
    for name in dict.fromkeys(row.name for row in rows):
        points = sorted(
            (row.numbers[axis] / unit, getattr(row, quantity)) for row in rows if row.name == name
        )
        style = (
            {"linestyle": "--", "color": "0.4"} if name == ARITHMETIC else {"marker": "o", "markersize": 4}
        )
        panel.plot(*zip(*points, strict=True), label=name, **style)
    panel.xaxis.set_major_locator(MaxNLocator(4, integer=axis != "size"))
    panel.set_ylim(0, 1.1 * panel.dataLim.y1)
    panel.grid(color="0.9")
    panel.set_axisbelow(True)

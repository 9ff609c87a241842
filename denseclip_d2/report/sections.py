"""The section of the page about a test set, ready for the template."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .charts import Chart, line_chart
from .detections import IOU, DetectionResults
from .images import MOST, Shown
from .labels import Labels

TASKS = {"bbox": "Box", "segm": "Mask"}
IN_MATRIX = 30
"""The most classes whose confusions are drawn as a matrix."""
CONFUSIONS = 15
"""How many of the most frequent confusions are listed."""
OUTERMOST, BESIDE = 8, 4
"""Of many classes: how many of the best and of the worst are shown, and how many of their columns."""
CURVES = 6
"""How many classes have a curve, from the best to the worst."""


class Cell(NamedTuple):
    """
    Attributes:
        text: the text.
        bar: the length of a bar behind the text, 0 to 100; None: no bar.
    """

    text: str
    bar: float | None = None


class Table(NamedTuple):
    """
    Attributes:
        rows: each as long as the head.
        words: how many of the first columns are words, not numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: int = 1


class Matrix(NamedTuple):
    """Confusions.

    Attributes:
        across, down: names of the columns and rows; a row is a true class.
        rows: the count of each cell, and its share of the row, 0 to 1.
    """

    across: Sequence[str]
    down: Sequence[str]
    rows: Sequence[Sequence[tuple[int, float]]]


@dataclass
class Section:
    """
    Attributes:
        title: such as "Objects of my_val".
        cards: name, value and details of the main metrics.
        ranked: the metric that ranks the classes.
        classes: from the best to the worst, then those without a value; ``ranked_classes`` have one.
        best_classes, worst_classes: the first columns of some rows, the extremes first.
        confused: a sentence about the confusions.
        quality: the metric that ranks the images.
        best, worst: images; if empty, ``no_images`` says why.
        notes: warnings about this test set.
    """

    title: str
    cards: list[tuple[str, str, str]]
    ranked: str
    classes: Table
    ranked_classes: int
    best_classes: Sequence[Sequence[Cell]]
    worst_classes: Sequence[Sequence[Cell]]
    confused: str
    confusions: Table
    quality: str
    matrix: Matrix | None = None
    sizes: Table | None = None
    charts: list[Chart] = field(default_factory=list)
    best: list[Shown] = field(default_factory=list)
    worst: list[Shown] = field(default_factory=list)
    no_images: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def scales(self) -> list[str]:
        """The meanings of the color scales."""
        return sorted({scale for image in self.best for *_, scale in image.panels if scale})


def number(value: float, digits: int = 1) -> str:
    """Return a number for people; a dash if it is not finite."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def box_section(name: str, found: DetectionResults) -> Section:
    """Describe the detections on a test set."""
    names, objects = found.class_names, found.objects
    by_class = {f"{TASKS[task]} AP": found.average_precision(task) for task in found.precision}
    by_class |= {f"{k}50": found.average_precision(t, 0.5) for t, k in zip(TASKS, by_class, strict=False)}
    right, taken = found.confusions.diagonal()[:-1], found.confusions[:-1, :-1].sum(1)
    counts = {
        "found": right,
        "taken for another": taken - right,
        "missed": objects - taken,
        "false alarms": found.confusions[-1, :-1],
    }
    first = next(iter(by_class.values()), np.full(len(names), np.nan))
    rows = [
        [
            Cell(names[i]),
            Cell(str(objects[i])),
            *(_percent(values[i]) for values in by_class.values()),
            *(Cell(str(values[i])) for values in counts.values()),
        ]
        for i in range(len(names))
    ]
    boxes = f"boxes that score {found.threshold:.0%} or more"
    return Section(
        title=f"Objects of {name}",
        cards=[*_cards(found.metrics), ("F1", number(100 * found.f1), f"of {boxes}")],
        ranked="AP of their boxes",
        **_ranked(["class", "objects", *by_class, *counts], rows, first, objects),
        confused=f"Of {boxes}. A box is on an object if their IoU is {IOU} or more.",
        confusions=_frequent(found.confusions[:-1, :-1], objects, names, "objects"),
        quality=f"F1 of {boxes}; the {MOST} with the highest scores are drawn",
        matrix=_matrix(found.confusions, [*names, "missed"], [*names, "nothing there"]),
        sizes=_sizes(found),
        charts=_precision_charts(found),
        notes=[] if found.precision else ["The model found nothing at all, so there is no AP."],
    )


def label_map_section(name: str, found: Labels) -> Section:
    """Describe the label maps of a test set."""
    names, metrics, iou, accuracy = found.class_names, found.metrics, found.iou, found.accuracy
    pixels = found.confusions.sum(1)
    other = found.confusions - np.diag(found.confusions.diagonal())
    rows = [
        [
            Cell(names[i]),
            Cell(f"{pixels[i] / max(pixels.sum(), 1):.2%}"),
            _percent(iou[i]),
            Cell(number(accuracy[i])),
            Cell(f"{names[other[i].argmax()]} ({other[i].max() / pixels[i]:.0%})" if other[i].any() else "–"),
        ]
        for i in range(len(names))
    ]
    miou, macc, pacc = (number(value) for value in metrics.values())
    return Section(
        title=f"Pixels of {name}",
        cards=[
            ("mIoU", miou, "mean IoU of the classes"),
            ("Pixel accuracy", pacc, f"mean of the classes {macc}"),
        ],
        ranked="IoU",
        **_ranked(["class", "pixels", "IoU", "accuracy", "most taken for"], rows, iou, pixels),
        confused="Of pixels, without ignored ones.",
        confusions=_frequent(found.confusions, pixels, names, "pixels"),
        quality="mean IoU of the classes in it",
        matrix=_matrix(found.confusions, names, names),
    )


def _percent(value: float) -> Cell:
    return Cell(number(value), float(value) if math.isfinite(value) else None)


def _cards(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    return [
        (
            f"{words} AP",
            number(metrics[f"{task}/AP"]),
            f"AP50 {number(metrics[f'{task}/AP50'])} · AP75 {number(metrics[f'{task}/AP75'])}",
        )
        for task, words in TASKS.items()
        if f"{task}/AP" in metrics
    ]


def _sizes(found: DetectionResults) -> Table | None:
    if not found.metrics:
        return None
    rows = [
        [
            Cell(kind),
            Cell(str(found.sizes.get(kind, 0))),
            *(_percent(found.metrics[f"{task}/AP{kind[0]}"]) for task in found.precision),
        ]
        for kind in ("small", "medium", "large")
    ]
    return Table(["size", "objects", *(f"{TASKS[task]} AP" for task in found.precision)], rows)


def _precision_charts(found: DetectionResults) -> list[Chart]:
    recalls = np.linspace(0, 1, 101)
    overall = {
        f"{TASKS[task]}, IoU {iou}": np.stack(
            [recalls, np.nanmean(precision[round(20 * iou) - 10], axis=1)], axis=1
        )
        for task, precision in found.precision.items()
        for iou in (0.5, 0.75)
        if np.isfinite(precision).any()
    }
    if not overall:
        return []
    boxes = found.precision["bbox"][0]
    order = [i for i in _from_best(boxes.mean(0), found.objects) if np.isfinite(boxes[:, i]).any()]
    chosen = dict.fromkeys(order[i] for i in np.linspace(0, len(order) - 1, CURVES).round().astype(int))
    draw = partial(line_chart, x_label="recall", y_label="precision", unit=True)
    charts = [draw("Precision and recall: mean of the classes", overall)]
    if len(order) > 1:
        curves = {found.class_names[i]: np.stack([recalls, boxes[:, i]], axis=1) for i in chosen}
        charts.append(draw("From the best class to the worst: boxes, IoU 0.5", curves))
    return charts


def _from_best(values: np.ndarray, weights: np.ndarray) -> list[int]:
    """Return class numbers from the highest value, those without one last; more weight goes first."""
    return np.lexsort((-weights, -values)).tolist()  # NaN goes to the end


def _ranked(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], values: np.ndarray, weights: np.ndarray
) -> dict[str, Any]:
    """Return the attributes of a :class:`Section` about its classes."""
    ranked = int(np.isfinite(values).sum())
    best = _from_best(values, weights)
    worst = [i for i in _from_best(-values, weights)[:ranked] if i not in best[:OUTERMOST]]
    return {
        "classes": Table(head, [rows[i] for i in best]),
        "ranked_classes": ranked,
        "best_classes": [rows[i][:BESIDE] for i in best[:OUTERMOST]],
        "worst_classes": [rows[i][:BESIDE] for i in worst[:OUTERMOST]],
    }


def _frequent(confusions: np.ndarray, totals: np.ndarray, names: Sequence[str], of: str) -> Table:
    """Return the most frequent confusions between classes, of (K, K) counts and (K,) totals."""
    other = confusions - np.diag(confusions.diagonal())
    frequent = np.argsort(-other, axis=None, kind="stable")[:CONFUSIONS]
    rows = [
        [
            Cell(names[true]),
            Cell(names[found]),
            Cell(str(other[true, found])),
            Cell(f"{other[true, found] / totals[true]:.0%}", 100 * other[true, found] / totals[true]),
        ]
        for true, found in zip(*np.unravel_index(frequent, other.shape), strict=True)
        if other[true, found]
    ]
    return Table(["is", "taken for", of, f"of its {of}"], rows, words=2)


def _matrix(confusions: np.ndarray, across: Sequence[str], down: Sequence[str]) -> Matrix | None:
    if len(across) > IN_MATRIX + 1:
        return None
    totals = np.maximum(confusions.sum(1, keepdims=True), 1)
    rows = [
        [*zip(counts, parts, strict=True)]
        for counts, parts in zip(confusions.tolist(), (confusions / totals).tolist(), strict=True)
    ]
    return Matrix(across, down, rows)

"""The pictures of one image, side by side: ground truth, what the model finds, and where it sees names."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from detectron2.structures import Instances
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..data.semantic import read_labels
from .drawing import (
    HEAT,
    draw_detections,
    draw_ground_truth,
    draw_label_map,
    draw_legend,
    draw_score_map,
    rendered,
)

# Inches: of a panel, between panels, and of the title above and the scale below.
WIDTH, GAP, ABOVE, BELOW = 3.2, 0.15, 0.4, 0.65
LEGEND = "classes"
"""Title of the panel that names the colors of label maps."""


class Panel(NamedTuple):
    """One picture.

    Attributes:
        picture: (H, W, 3) uint8, RGB.
        scale: what its colors, from blue for 0 to red for 1, stand for; empty: it is a plain picture.
    """

    picture: np.ndarray
    scale: str = ""

    @property
    def aspect(self) -> float:
        """Height over width."""
        return self.picture.shape[0] / self.picture.shape[1]


def image_panels(
    image: np.ndarray,
    predictions: dict,
    class_names: Sequence[str],
    *,
    record: dict,
    names: Sequence[str] = (),
    tau: float = 1.0,
    threshold: float = 0.5,
) -> dict[str, Panel]:
    """The panels of one image, by title.

    Args:
        image: (H, W, 3) uint8, RGB.
        predictions: what a :class:`Predictor` returns for it.
        record: of a dataset, in Detectron2's format, whose ground truth is drawn; empty where there is none.
        names: of ``score_maps``.
        tau: temperature of ``score_maps``.
        threshold: lowest score of the detections drawn.
    """
    if "instances" in predictions:
        row = _detection_panels(image, record, predictions["instances"], class_names, threshold)
    else:
        row = _segmentation_panels(image, _truth(record), label_map(predictions), class_names)
    for name, scores in zip(names, predictions.get("score_maps", []), strict=True):
        heat = draw_score_map(image, scores.cpu().numpy(), tau)
        row[f"score map: {name}"] = Panel(heat, scale="sigmoid(cosine / tau)")
    return row


def label_map(predictions: dict) -> np.ndarray:
    """(H, W) class ids, of what a segmentor returns."""
    return predictions["sem_seg"].argmax(0).cpu().numpy()


def names_in(record: dict, class_names: Sequence[str]) -> list[str]:
    """Names whose score maps are worth drawing: of up to three classes that the ground truth has."""
    return [class_names[c] for c in _classes_in(record, _truth(record), len(class_names))[:3]]


def grid(rows: Sequence[dict[str, Panel]]) -> np.ndarray:
    """One picture (H, W, 3), RGB, of rows of panels, each under its title. Rows need not be equally long."""
    heights = [max(WIDTH * panel.aspect for panel in row.values()) + ABOVE + BELOW for row in rows]
    size = GAP + (WIDTH + GAP) * max(map(len, rows)), sum(heights)
    figure, top = Figure(figsize=size, dpi=100), size[1]
    for row, height in zip(rows, heights, strict=True):
        for column, (title, panel) in enumerate(row.items()):
            left, bottom = GAP + column * (WIDTH + GAP), top - ABOVE - WIDTH * panel.aspect
            axes = _add_axes(figure, left, bottom, WIDTH, WIDTH * panel.aspect)
            axes.axis("off")
            axes.imshow(panel.picture, aspect="auto")
            axes.set_title(title, fontsize=10)
            if panel.scale:
                below = _add_axes(figure, left + 0.1 * WIDTH, bottom - 0.2, 0.8 * WIDTH, 0.1)
                bar = figure.colorbar(ScalarMappable(cmap=HEAT), cax=below, orientation="horizontal")
                bar.ax.tick_params(labelsize=7)
                bar.set_label(panel.scale, fontsize=8)
        top -= height
    return rendered(figure)


def strip(row: dict[str, Panel]) -> np.ndarray:
    """The panels of a row side by side, each as large as the first, as a frame of a video; RGB.

    A title is written on each, but not on a single one. Unlike :func:`grid`'s, the size depends on the first
    panel's and on the number of panels alone, and drawing takes milliseconds.
    """
    height, width = next(iter(row.values())).picture.shape[:2]
    font = ImageFont.truetype(findfont("DejaVu Sans"), max(height // 30, 10))
    frame = Image.new("RGB", (width * len(row), height), "white")
    for column, (title, panel) in enumerate(row.items()):
        frame.paste(ImageOps.contain(Image.fromarray(panel.picture), (width, height)), (column * width, 0))
        if len(row) > 1:
            place = column * width + font.size // 2, font.size // 2
            ImageDraw.Draw(frame).text(place, title, "white", font, stroke_width=2, stroke_fill="black")
    return np.asarray(frame)


def _add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / down, width / across, height / down))


def _truth(record: dict) -> np.ndarray | None:
    return read_labels(record["sem_seg_file_name"]) if "sem_seg_file_name" in record else None


def _classes_in(record: dict, truth: np.ndarray | None, num_classes: int) -> list[int]:
    """Ids of the classes in an image's ground truth: of a label map, the largest first."""
    if truth is None:
        return list(dict.fromkeys(a["category_id"] for a in record.get("annotations", [])))
    areas = np.bincount(truth[truth < num_classes], minlength=num_classes)
    return [c for c in areas.argsort()[::-1].tolist() if areas[c]]


def _detection_panels(
    image: np.ndarray, record: dict, instances: Instances, class_names: Sequence[str], threshold: float
) -> dict[str, Panel]:
    row = {}
    if "annotations" in record:
        with_masks = instances.has("pred_masks")
        row["ground truth"] = Panel(draw_ground_truth(image, record, class_names, with_masks=with_masks))
    found = draw_detections(image, instances, class_names, threshold)
    row[f"detections that score {threshold:.0%} or more"] = Panel(found)
    return row


def _segmentation_panels(
    image: np.ndarray, truth: np.ndarray | None, labels: np.ndarray, class_names: Sequence[str]
) -> dict[str, Panel]:
    maps = {"segmentation": labels} if truth is None else {"ground truth": truth, "segmentation": labels}
    row = {title: Panel(draw_label_map(image, map_, len(class_names))) for title, map_ in maps.items()}
    present = np.unique(np.concatenate([map_.ravel() for map_ in maps.values()]))
    row[LEGEND] = Panel(draw_legend(present[present < len(class_names)].tolist(), class_names))
    return row

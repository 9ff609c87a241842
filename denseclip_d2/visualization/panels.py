"""Panels of one image, side by side: ground truth, predictions and score maps."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..data.semantic import read_labels
from .drawing import (
    HEAT,
    draw_annotations,
    draw_detections,
    draw_heat_map,
    draw_label_map,
    draw_legend,
    rendered,
)

# Inches: a panel's width, the gap between panels, the title above a panel, the scale below it.
WIDTH, GAP, ABOVE, BELOW = 3.2, 0.15, 0.4, 0.65
LEGEND = "classes"
"""Title of the panel with the colors of label maps."""


class Panel(NamedTuple):
    """One drawn image.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        scale: meaning of its colors, from blue for 0 to red for 1; empty if it has no color scale.
    """

    image: np.ndarray
    scale: str = ""

    @property
    def aspect(self) -> float:
        """Height over width."""
        return self.image.shape[0] / self.image.shape[1]


def image_panels(
    image: np.ndarray,
    predictions: dict,
    class_names: Sequence[str],
    *,
    record: dict,
    true_names: Sequence[str] = (),
    names: Sequence[str] = (),
    threshold: float = 0.5,
) -> dict[str, Panel]:
    """Return the panels of one image by title.

    Args:
        image: (H, W, 3) uint8, RGB.
        predictions: output of a :class:`Predictor` for the image.
        record: ground truth in Detectron2's dataset format; empty without ground truth.
        true_names: the class names of the ground truth; empty: ``class_names``.
        names: the names of ``heat_maps``.
        threshold: lowest score of the detections drawn.
    """
    row, true_names = {}, true_names or class_names
    drawn_names = list(dict.fromkeys([*class_names, *true_names]))  # a name has one color
    places = np.array([drawn_names.index(name) for name in true_names])
    if "instances" in predictions:
        instances = predictions["instances"]
        if "annotations" in record:
            truth = [{**a, "category_id": places[a["category_id"]]} for a in record["annotations"]]
            drawn = draw_annotations(image, truth, drawn_names, with_masks=instances.has("pred_masks"))
            row["ground truth"] = Panel(drawn)
        drawn = draw_detections(image, instances, class_names, threshold)
        row[f"detections that score {threshold:.0%} or more"] = Panel(drawn)
    else:
        maps = {"segmentation": label_map(predictions)}
        if "sem_seg_file_name" in record:
            labels = read_labels(record["sem_seg_file_name"])
            ignored = labels >= len(places)
            labels = np.where(ignored, len(drawn_names), places[np.where(ignored, 0, labels)])
            maps = {"ground truth": labels, **maps}
        row = {title: Panel(draw_label_map(image, map_, len(drawn_names))) for title, map_ in maps.items()}
        present = np.unique(np.concatenate([map_.ravel() for map_ in maps.values()]))
        row[LEGEND] = Panel(draw_legend(present[present < len(drawn_names)].tolist(), drawn_names))
    for name, heat in zip(names, predictions.get("heat_maps", []), strict=True):
        row[f"score map: {name}"] = Panel(draw_heat_map(image, heat.cpu().numpy()), scale="probability")
    return row


def label_map(predictions: dict) -> np.ndarray:
    """Return the (H, W) class ids of a segmentation model's output."""
    return predictions["sem_seg"].argmax(0).cpu().numpy()


def names_in(record: dict, class_names: Sequence[str]) -> list[str]:
    """Return the names of up to three classes of the ground truth. Of a label map, return the largest."""
    if "sem_seg_file_name" in record:
        areas = np.bincount(read_labels(record["sem_seg_file_name"]).ravel(), minlength=256)
        areas = areas[: len(class_names)]
        classes = [c for c in areas.argsort()[::-1].tolist() if areas[c]]
    else:
        classes = list(dict.fromkeys(a["category_id"] for a in record.get("annotations", [])))
    return [class_names[c] for c in classes[:3]]


def grid(rows: Sequence[dict[str, Panel]]) -> np.ndarray:
    """Draw rows of panels with their titles as one image (H, W, 3), RGB. Rows may differ in length."""
    heights = [max(WIDTH * panel.aspect for panel in row.values()) + ABOVE + BELOW for row in rows]
    size = GAP + (WIDTH + GAP) * max(map(len, rows)), sum(heights)
    figure, top = Figure(figsize=size, dpi=100), size[1]
    for row, height in zip(rows, heights, strict=True):
        for column, (title, panel) in enumerate(row.items()):
            left, bottom = GAP + column * (WIDTH + GAP), top - ABOVE - WIDTH * panel.aspect
            axes = _add_axes(figure, left, bottom, WIDTH, WIDTH * panel.aspect)
            axes.axis("off")
            axes.imshow(panel.image, aspect="auto")
            axes.set_title(title, fontsize=10, parse_math=False)
            if panel.scale:
                below = _add_axes(figure, left + 0.1 * WIDTH, bottom - 0.2, 0.8 * WIDTH, 0.1)
                bar = figure.colorbar(ScalarMappable(cmap=HEAT), cax=below, orientation="horizontal")
                bar.ax.tick_params(labelsize=7)
                bar.set_label(panel.scale, fontsize=8)
        top -= height
    return rendered(figure)


def strip(row: dict[str, Panel]) -> np.ndarray:
    """Draw a row of panels as a video frame, RGB. Each panel is as large as the first.

    Every panel has its title on it, unless it is the only one. Unlike :func:`grid`, this takes milliseconds,
    and the size depends only on the first panel and the number of panels.
    """
    height, width = next(iter(row.values())).image.shape[:2]
    font = ImageFont.truetype(findfont("DejaVu Sans"), max(height // 30, 10))
    frame = Image.new("RGB", (width * len(row), height), "white")
    for column, (title, panel) in enumerate(row.items()):
        frame.paste(ImageOps.contain(Image.fromarray(panel.image), (width, height)), (column * width, 0))
        if len(row) > 1:
            place = column * width + font.size // 2, font.size // 2
            ImageDraw.Draw(frame).text(place, title, "white", font, stroke_width=2, stroke_fill="black")
    return np.asarray(frame)


def _add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a place in inches."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / down, width / across, height / down))

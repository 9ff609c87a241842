"""The best and the worst images of a test set, small enough for a page."""

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import to_hex
from PIL import Image

from ..data.image_io import read_image
from ..data.semantic import read_labels
from ..inference import Predictor
from ..visualization import image_panels
from ..visualization.drawing import class_color
from ..visualization.panels import LEGEND, Panel, label_map, names_in

SIZES = ((480, 85), (420, 80), (360, 75), (300, 70), (220, 60))
"""Longer sides in pixels and JPEG qualities, tried in turn until all images are small enough."""
MOST = 30
"""The most detections drawn in an image, by score. More cannot be distinguished."""


class Shown(NamedTuple):
    """An image on the page.

    Attributes:
        name: of the file.
        quality: 0 to 1.
        panels: title, ``data:`` URI, and the meaning of the color scale, empty without one.
        legend: classes and colors of label maps.
    """

    name: str
    quality: float
    panels: list[tuple[str, str, str]]
    legend: list[tuple[str, str]]


def best_and_worst(quality: Mapping[Any, tuple[float, int]], count: int) -> tuple[list, list]:
    """Return ``count`` of the best and of the worst images, the extremes first; no image is in both.

    Args:
        quality: of each image, and the number of its objects, which decides between equal qualities.
    """
    best, worst = (
        sorted(quality, key=lambda image: (sign * quality[image][0], -quality[image][1], image))[:count]
        for sign in (-1, 1)
    )
    half = (len(quality) + 1) // 2
    return best[:half], worst[: len(quality) - half]


def show(
    predictor: Predictor,
    records: Sequence[dict],
    quality: Sequence[float],
    *,
    threshold: float,
    max_bytes: int,
) -> list[Shown]:
    """Draw ground truth, predictions, and score maps of some names.

    Args:
        records: Detectron2's dataset dicts.
        quality: of each.
        threshold: lowest score of the detections drawn.
        max_bytes: of all images together, as they are on the page.

    Raises:
        FileNotFoundError, ValueError: an image is missing or broken.
    """
    drawn = [*_draw(predictor, records, threshold)]
    for side, jpeg in SIZES:
        shown = [
            Shown(
                Path(record["file_name"]).name,
                value,
                [(title, encoded(panel.image, side, jpeg), panel.scale) for title, panel in row.items()],
                legend,
            )
            for record, value, (row, legend) in zip(records, quality, drawn, strict=True)
        ]
        if sum(len(uri) for image in shown for _, uri, _ in image.panels) <= max_bytes:
            break
    return shown


def _draw(
    predictor: Predictor, records: Sequence[dict], threshold: float
) -> Iterator[tuple[dict[str, Panel], list[tuple[str, str]]]]:
    """Yield the full-size panels and the legend of each image."""
    names = predictor.class_names
    images = [read_image(record["file_name"]) for record in records]
    asked = [names_in(record, names) if predictor.guidance else [] for record in records]
    outputs = predictor.stream(zip(images, asked, strict=True))
    for record, image, of_image, found in zip(records, images, asked, outputs, strict=True):
        if "instances" in found:
            found["instances"] = found["instances"][:MOST]  # Detectron2 sorts by score
        row = image_panels(
            image[:, :, ::-1], found, names,
            record=record, names=of_image, threshold=threshold,
        )  # fmt: skip
        legend = []
        if row.pop(LEGEND, None):  # the page draws its own
            maps = read_labels(record["sem_seg_file_name"]), label_map(found)
            present = np.union1d(*maps)
            legend = [(names[c], to_hex(class_color(c))) for c in present[present < len(names)].tolist()]
        yield row, legend


def encoded(image: np.ndarray, side: int, jpeg: int) -> str:
    """Return an image (H, W, 3) as a ``data:`` URI of at most ``side`` pixels and JPEG quality ``jpeg``."""
    small = Image.fromarray(image)
    small.thumbnail((side, side))
    file = BytesIO()
    small.save(file, "JPEG", quality=jpeg, optimize=True)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"

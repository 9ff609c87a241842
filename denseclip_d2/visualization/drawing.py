"""What a model sees, drawn over an image: boxes, masks, labels of pixels, score maps."""

from collections.abc import Sequence
from itertools import product

import cv2
import matplotlib
import numpy as np
from detectron2.structures import BoxMode, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike
from PIL import Image

HEAT = matplotlib.colormaps["turbo"]
PALETTE = colormap(rgb=True, maximum=1)
MIN_WIDTH = 480
"""Pixels of width below which pictures are enlarged, so that labels stay readable."""
FILL = 0.12
"""Opacity of what is inside a mask's outline: colors can be what tells classes apart."""


def draw_ground_truth(
    image: np.ndarray, record: dict, class_names: Sequence[str], *, with_masks: bool
) -> np.ndarray:
    """The boxes, or masks as well, of a dataset record over its image (H, W, 3), RGB."""
    annotations = record["annotations"]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    labels = [class_names[a["category_id"]] + (" (crowd)" if a.get("iscrowd") else "") for a in annotations]
    masks = [a["segmentation"] for a in annotations] if with_masks else None
    return draw_boxes(image, boxes, masks, [a["category_id"] for a in annotations], labels)


def draw_detections(
    image: np.ndarray, instances: Instances, class_names: Sequence[str], threshold: float
) -> np.ndarray:
    """The boxes, and masks where there are any, that score ``threshold`` or more over an image, RGB."""
    instances = instances[instances.scores >= threshold].to("cpu")
    classes = instances.pred_classes.tolist()
    labels = [f"{class_names[c]} {score:.0%}" for c, score in zip(classes, instances.scores, strict=True)]
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    return draw_boxes(image, instances.pred_boxes.tensor.numpy(), masks, classes, labels)


def draw_label_map(image: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Outlines and a light fill in the classes' colors; pixels of no class, such as ignored ones, stay.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W), class ids.
        num_classes: K; ids from K on stand for no class.
    Returns: (H', W', 3) uint8, RGB; as large as the image, or enlarged to a width of :data:`MIN_WIDTH`.
    """
    height, width = image.shape[:2]
    scale = max(1.0, MIN_WIDTH / width)
    size = round(scale * width), round(scale * height)
    drawn = np.asarray(Image.fromarray(image).resize(size))
    labels = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    colors = 255 * np.array([class_color(c) for c in range(num_classes)])
    outlines = cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    strength = np.where(outlines, 1.0, FILL)[..., None]
    colored = (1 - strength) * drawn + strength * colors[labels.clip(max=num_classes - 1)]
    return np.where((labels < num_classes)[..., None], colored, drawn).astype(np.uint8)


def draw_legend(classes: Sequence[int], class_names: Sequence[str]) -> np.ndarray:
    """The colors that :func:`draw_label_map` gives to some classes, with their names; RGB."""
    figure = Figure(figsize=(3, max(3, 0.22 * len(classes))), dpi=100)
    patches = [Patch(color=class_color(c), label=class_names[c]) for c in classes]
    figure.legend(handles=patches, loc="center", frameon=False)
    return rendered(figure)


def draw_score_map(image: np.ndarray, scores: np.ndarray, tau: float) -> np.ndarray:
    """sigmoid(s / tau), from blue for 0 to red for 1, over an image.

    Args:
        image: (H, W, 3) uint8, RGB.
        scores: (H, W), cosine similarities.
    Returns: (H, W, 3) uint8, RGB.
    """
    probability = 1 / (1 + np.exp(-scores / tau))
    heat = 255 * HEAT(probability)[..., :3]
    return (0.45 * image + 0.55 * heat).astype(np.uint8)


def rendered(figure: Figure) -> np.ndarray:
    """A figure as a picture (H, W, 3) uint8, RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def class_color(c: int) -> tuple[float, float, float]:
    """A class's color; past the palette's end, it comes again darker."""
    red, green, blue = PALETTE[c % len(PALETTE)] * 0.6 ** (c // len(PALETTE))
    return red, green, blue


def draw_boxes(
    image: np.ndarray, boxes: ArrayLike, masks: Sequence | None, classes: list[int], labels: list[str]
) -> np.ndarray:
    """Boxes (N, 4), corner to corner, and masks where there are any, in their classes' colors, RGB."""
    visualizer = _Visualizer(image, scale=max(1.0, MIN_WIDTH / image.shape[1]))
    colors = [class_color(c) for c in classes]
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    drawn = visualizer.overlay_instances(
        boxes=boxes, masks=masks, labels=labels, assigned_colors=colors, alpha=FILL
    )
    return drawn.get_image()


class _Visualizer(Visualizer):
    """Detectron2's, whose labels stay inside the picture and do not cover one another."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._default_font_size *= 1.3  # pictures are mostly seen small, several on a page
        self._labels: list[np.ndarray] = []

    def draw_box(self, box_coord, alpha=1.0, edge_color="g", line_style="-"):
        return super().draw_box(box_coord, 1.0, edge_color, line_style)

    def draw_text(self, text, position, **kwargs):
        drawn = super().draw_text(text, position, **kwargs)
        label, axes = self.output.ax.texts[-1], self.output.ax
        picture, extent = axes.bbox, self._extent(label)
        if extent.width > picture.width:
            label.set_fontsize(label.get_fontsize() * picture.width / extent.width)
            extent = self._extent(label)
        places = _places_near(extent, picture)
        free = places[_overlaps(places, self._labels).argmin()]
        self._labels.append(free)
        moved = axes.transData.transform(label.get_position()) + free[:2] - extent.min
        label.set_position(axes.transData.inverted().transform(moved))
        return drawn

    def _extent(self, label: Text) -> Bbox:
        """Where a label is drawn with the box around it, in pixels of the picture."""
        label.update_bbox_position_size(self.output.canvas.get_renderer())
        box = label.get_bbox_patch()
        return box.get_window_extent() if box else label.get_window_extent()


# Down and right, in a label's heights and in halves of its width, the nearest first: (2, P).
_STEPS = np.array(
    sorted(product(range(-10, 11), range(-3, 4)), key=lambda step: abs(step[0]) + 2 * abs(step[1]))
).T


def _places_near(extent: Bbox, picture: Bbox) -> np.ndarray:
    """Where a label can go inside the picture: up, down or aside of where it is, the nearest first.

    Returns: (P, 4), left, lower, right and upper sides.
    """
    down, right = _STEPS
    x = (extent.x0 + right * extent.width / 2).clip(max=picture.x1 - extent.width).clip(min=picture.x0)
    y = (extent.y0 - down * extent.height).clip(max=picture.y1 - extent.height).clip(min=picture.y0)
    return np.stack([x, y, x + extent.width, y + extent.height], axis=1)


def _overlaps(places: np.ndarray, labels: Sequence[np.ndarray]) -> np.ndarray:
    """Pixels (P,) that a label would share with others (4,) at each of these places (P, 4)."""
    others = np.reshape(labels, (-1, 4))
    upper = np.minimum(places[:, None, 2:], others[:, 2:])
    lower = np.maximum(places[:, None, :2], others[:, :2])
    return (upper - lower).clip(min=0).prod(axis=2).sum(axis=1)

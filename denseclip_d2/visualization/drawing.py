"""Predictions and ground truth drawn over an image: boxes, masks, label maps, score maps."""

from collections.abc import Sequence
from itertools import product

import cv2
import matplotlib
import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

HEAT = matplotlib.colormaps["turbo"]
PALETTE = colormap(rgb=True, maximum=1)
MIN_WIDTH = 480
"""Images with fewer pixels across are enlarged, so that labels stay readable."""
FILL = 0.12
"""Opacity inside a mask's outline. It is low, because colors can identify classes."""
LABEL_FILL = 0.3
"""Opacity of the classes of a label map."""


def draw_detections(
    image: np.ndarray, instances: Instances, class_names: Sequence[str], threshold: float
) -> np.ndarray:
    """Draw the boxes, and masks if the model has them, with at least this score over an image, RGB."""
    shown = instances[instances.scores >= threshold].to("cpu")
    return draw_annotations(image, instances_to_coco_json(shown, 0), class_names)


def draw_annotations(
    image: np.ndarray, annotations: Sequence[dict], class_names: Sequence[str], *, with_masks: bool = True
) -> np.ndarray:
    """Draw boxes over an image (H, W, 3), RGB, and their masks if all have one.

    Args:
        annotations: of a record in Detectron2's dataset format, or of COCO with contiguous category ids.
    """
    form, corners = BoxMode.XYWH_ABS, BoxMode.XYXY_ABS
    boxes = [BoxMode.convert(a["bbox"], a.get("bbox_mode", form), corners) for a in annotations]
    classes = [a["category_id"] for a in annotations]
    notes = [f" {a['score']:.0%}" if "score" in a else " (crowd)" * a.get("iscrowd", 0) for a in annotations]
    labels = [class_names[c] + note for c, note in zip(classes, notes, strict=True)]
    masks = [a["segmentation"] for a in annotations if with_masks and "segmentation" in a]
    return draw_boxes(image, boxes, masks if len(masks) == len(boxes) else None, classes, labels)


def draw_boxes(image: np.ndarray, boxes, masks, classes: list[int], labels: list[str]) -> np.ndarray:
    """Draw boxes (N, 4), and masks unless None, in the colors of their classes, RGB.

    Args:
        boxes, masks: anything that Detectron2's ``Visualizer.overlay_instances`` takes.
    """
    visualizer = _Visualizer(image, scale=max(1.0, MIN_WIDTH / image.shape[1]))
    colors = [class_color(c) for c in classes]
    return visualizer.overlay_instances(
        boxes=boxes, masks=masks, labels=labels, assigned_colors=colors, alpha=FILL
    ).get_image()


def draw_label_map(image: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Draw outlines and a fill in the colors of the classes. Pixels without a class stay as they are.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) class ids. Ids from ``num_classes`` on, such as the ignored label, are no class.
    Returns: (H', W', 3) uint8, RGB; as large as the image, or enlarged to a width of :data:`MIN_WIDTH`.
    """
    height, width = image.shape[:2]
    scale = max(1.0, MIN_WIDTH / width)
    size = round(scale * width), round(scale * height)
    drawn = np.asarray(Image.fromarray(image).resize(size))
    labels = np.asarray(Image.fromarray(labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    colors = 255 * np.array([class_color(c) for c in range(num_classes)])
    outlines = cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    strength = np.where(outlines, 1.0, LABEL_FILL)[..., None]
    colored = (1 - strength) * drawn + strength * colors[labels.clip(max=num_classes - 1)]
    return np.where((labels < num_classes)[..., None], colored, drawn).astype(np.uint8)


def draw_legend(classes: Sequence[int], class_names: Sequence[str]) -> np.ndarray:
    """Draw the names and colors of some classes, RGB."""
    figure = Figure(figsize=(3, max(3, 0.22 * len(classes))), dpi=100)
    patches = [Patch(color=class_color(c), label=str(c)) for c in classes]
    legend = figure.legend(handles=patches, loc="center", frameon=False)
    for text, c in zip(legend.get_texts(), classes, strict=True):  # matplotlib drops labels such as "_a"
        text.set_text(class_names[c])
        text.set_parse_math(False)
    return rendered(figure)


def draw_heat_map(image: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Draw probabilities over an image, from blue for 0 to red for 1.

    Args:
        image: (H, W, 3) uint8, RGB.
        probability: (H, W), a heat map of a :class:`Predictor`.
    Returns: (H, W, 3) uint8, RGB.
    """
    heat = 255 * HEAT(probability)[..., :3]
    return (0.45 * image + 0.55 * heat).astype(np.uint8)


def rendered(figure: Figure) -> np.ndarray:
    """Return a figure as an image (H, W, 3) uint8, RGB."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def class_color(c: int) -> tuple[float, float, float]:
    """Return a class's color. After the end of the palette, its colors repeat, and are darker."""
    red, green, blue = PALETTE[c % len(PALETTE)] * 0.6 ** (c // len(PALETTE))
    return red, green, blue


class _Visualizer(Visualizer):
    """Detectron2's visualizer with labels that stay inside the image and do not cover one another."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._default_font_size *= 1.3  # several images on a page are seen small
        self._labels: list[np.ndarray] = []

    def draw_box(self, box_coord, alpha=1.0, edge_color="g", line_style="-"):
        return super().draw_box(box_coord, 1.0, edge_color, line_style)

    def draw_text(self, text, position, **kwargs):
        drawn = super().draw_text(text, position, **kwargs)
        label, axes = self.output.ax.texts[-1], self.output.ax
        label.set_parse_math(False)  # a name such as "$5 to $10" is no formula
        image, extent = axes.bbox, self._extent(label)
        if extent.width > image.width:
            label.set_fontsize(label.get_fontsize() * image.width / extent.width)
            extent = self._extent(label)
        places = _places_near(extent, image)
        free = places[_overlaps(places, self._labels).argmin()]
        self._labels.append(free)
        moved = axes.transData.transform(label.get_position()) + free[:2] - extent.min
        label.set_position(axes.transData.inverted().transform(moved))
        return drawn

    def _extent(self, label: Text) -> Bbox:
        """Return the extent of a label with its background, in pixels of the image."""
        label.update_bbox_position_size(self.output.canvas.get_renderer())
        box = label.get_bbox_patch()
        return box.get_window_extent() if box else label.get_window_extent()


# (2, P) steps down, in heights of a label, and right, in halves of its width, the nearest first.
_STEPS = np.array(
    sorted(product(range(-10, 11), range(-3, 4)), key=lambda step: abs(step[0]) + 2 * abs(step[1]))
).T


def _places_near(extent: Bbox, image: Bbox) -> np.ndarray:
    """Return places (P, 4) for a label inside the image, the nearest first: left, lower, right, upper."""
    down, right = _STEPS
    x = (extent.x0 + right * extent.width / 2).clip(max=image.x1 - extent.width).clip(min=image.x0)
    y = (extent.y0 - down * extent.height).clip(max=image.y1 - extent.height).clip(min=image.y0)
    return np.stack([x, y, x + extent.width, y + extent.height], axis=1)


def _overlaps(places: np.ndarray, labels: Sequence[np.ndarray]) -> np.ndarray:
    """Return the pixels (P,) that a label at each of the places (P, 4) shares with other labels (4,)."""
    others = np.reshape(labels, (-1, 4))
    upper = np.minimum(places[:, None, 2:], others[:, 2:])
    lower = np.maximum(places[:, None, :2], others[:, :2])
    return (upper - lower).clip(min=0).prod(axis=2).sum(axis=1)

"""Pictures of what a model sees: its boxes or labels beside the ground truth's, and score maps."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from detectron2.structures import BoxMode, Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

HEAT = matplotlib.colormaps["turbo"]
PALETTE = colormap(rgb=True, maximum=1)
MIN_WIDTH = 480
"""Pixels of width below which pictures are enlarged, so that labels stay readable."""


def draw_ground_truth(
    image: np.ndarray, record: dict, class_names: Sequence[str], *, with_masks: bool
) -> np.ndarray:
    """The boxes, or masks as well, of a dataset record over its image (H, W, 3), RGB."""
    annotations = record["annotations"]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    labels = [class_names[a["category_id"]] + (" (crowd)" if a.get("iscrowd") else "") for a in annotations]
    masks = [a["segmentation"] for a in annotations] if with_masks else None
    return _draw(image, boxes, masks, [a["category_id"] for a in annotations], labels)


def draw_detections(
    image: np.ndarray, instances: Instances, class_names: Sequence[str], threshold: float
) -> np.ndarray:
    """The boxes, and masks where there are any, that score ``threshold`` or more over an image, RGB."""
    instances = instances[instances.scores >= threshold].to("cpu")
    classes = instances.pred_classes.tolist()
    labels = [f"{class_names[c]} {score:.0%}" for c, score in zip(classes, instances.scores, strict=True)]
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    return _draw(image, instances.pred_boxes.tensor.numpy(), masks, classes, labels)


def draw_label_map(image: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Each class in its colour over an image; pixels of no class, such as ignored ones, stay as they are.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W), class ids.
        num_classes: K; ids from K on stand for no class.
    Returns: (H, W, 3) uint8, RGB.
    """
    colors = 255 * np.array([_color(c) for c in range(num_classes)])
    drawn, labelled = image.copy(), labels < num_classes
    drawn[labelled] = (0.35 * image[labelled] + 0.65 * colors[labels[labelled]]).astype(np.uint8)
    return drawn


def draw_legend(classes: Sequence[int], class_names: Sequence[str]) -> np.ndarray:
    """The colours that :func:`draw_label_map` gives to some classes, with their names; RGB."""
    figure = Figure(figsize=(3, max(3, 0.22 * len(classes))), dpi=100)
    patches = [Patch(color=_color(c), label=class_names[c]) for c in classes]
    figure.legend(handles=patches, loc="center", frameon=False)
    return _rendered(figure)


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


def grid(rows: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    """One picture of rows of pictures, each under its title; RGB. Rows need not be equally long."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(3.2 * columns, 3.4 * len(rows)), dpi=100, layout="tight")
    for all_axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axes in all_axes:
            axes.axis("off")
        for axes, (title, panel) in zip(all_axes, row.items(), strict=False):
            axes.imshow(panel)
            axes.set_title(title, fontsize=10)
    return _rendered(figure)


def _rendered(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _color(c: int) -> np.ndarray:
    """A class's colour; past the palette's end, it comes again darker."""
    return PALETTE[c % len(PALETTE)] * 0.6 ** (c // len(PALETTE))


def _draw(
    image: np.ndarray, boxes: Sequence, masks: Sequence | None, classes: list[int], labels: list[str]
) -> np.ndarray:
    visualizer = Visualizer(image, scale=max(1.0, MIN_WIDTH / image.shape[1]))
    colors = [_color(c) for c in classes]
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    drawn = visualizer.overlay_instances(boxes=boxes, masks=masks, labels=labels, assigned_colors=colors)
    return drawn.get_image()

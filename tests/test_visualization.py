import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from denseclip_d2.shapes.dataset import CLASS_NAMES
from denseclip_d2.visualization import Panel, drawing, grid


@pytest.fixture
def image() -> np.ndarray:
    return np.full((120, 160, 3), 128, np.uint8)


def detections(boxes: np.ndarray, **fields) -> Instances:
    scores = torch.full((len(boxes),), 0.9)
    classes = torch.arange(len(boxes)) % len(CLASS_NAMES)
    return Instances(
        (120, 160), pred_boxes=Boxes(torch.tensor(boxes)), scores=scores, pred_classes=classes, **fields
    )


def test_labels_stay_in_the_image_and_do_not_overlap(image):
    """Boxes at one place and at the border, and labels wider than the image."""
    visualizer = drawing._Visualizer(image, scale=3)
    corners = np.random.default_rng(0).uniform((0, 0), (130, 90), (8, 2))
    boxes = np.concatenate([corners, corners + 30], axis=1)
    boxes[:3] = boxes[0]
    labels = [f"{name} 90%" for name in CLASS_NAMES[:7]] + ["a name " * 30]
    visualizer.overlay_instances(boxes=boxes, labels=labels)
    image = visualizer.output.ax.bbox
    placed = [visualizer._extent(label) for label in visualizer.output.ax.texts]
    sides = np.array([box.extents for box in placed])
    assert len(placed) == 8
    for i, box in enumerate(placed):
        assert image.x0 - 1 <= box.x0 and box.x1 <= image.x1 + 1
        assert image.y0 - 1 <= box.y0 and box.y1 <= image.y1 + 1
        assert drawing._overlaps(sides[i : i + 1], sides[:i]) < 1


def test_names_are_drawn_as_they_are(image):
    """A "$" begins no formula, and "_" hides no name: matplotlib would fail, or leave them out."""
    names = ["a $5 note", "$\\foo$", "_a"]
    annotations = [{"bbox": [10, 10, 40, 40], "category_id": i} for i in range(len(names))]
    assert (drawing.draw_annotations(image, annotations, names) != 128).any()
    grid([{"score map: $\\foo$": Panel(image)}])
    blank, *legends = (drawing.draw_legend([0], [name]) for name in ("", "_a", "$\\foo$"))
    assert all((legend != blank).any() for legend in legends)


def test_a_mask_keeps_the_colors_of_its_object(image):
    """Colors identify classes here. A mask must not change the colors of its object."""
    green = np.array([30, 155, 50])
    image[40:80, 40:80] = green
    masks = torch.zeros(1, 120, 160, dtype=torch.bool)
    masks[0, 40:80, 40:80] = True
    boxes = np.array([[40.0, 40, 80, 80]], np.float32)
    drawn = drawing.draw_detections(image, detections(boxes, pred_masks=masks), CLASS_NAMES, 0.5)
    scale = len(drawn) // 120
    inside = drawn[50 * scale : 60 * scale, 50 * scale : 60 * scale].reshape(-1, 3).mean(axis=0)
    assert np.abs(inside - green).max() < 0.15 * 255


def test_label_maps_have_outlines_and_unlabeled_pixels_stay(image):
    labels = np.full((120, 160), 255)
    labels[40:80, 40:80] = 1
    drawn = drawing.draw_label_map(image, labels, 3).astype(int)
    scale = len(drawn) // 120
    assert (drawn[: 30 * scale] == 128).all()
    fill, outline = drawn[60 * scale, 60 * scale], drawn[40 * scale, 60 * scale]
    assert 0 < np.abs(fill - 128).max() < 0.4 * np.abs(outline - 128).max()


def test_only_score_maps_have_a_color_scale(image):
    plain = grid([{"a": Panel(image)}])
    scaled = grid([{"a": Panel(image, scale="sigmoid")}])
    colors = [len(np.unique(p[-90:].reshape(-1, 3), axis=0)) for p in (plain, scaled)]
    assert colors[0] < 20 < 100 < colors[1]


def test_rows_may_differ_in_length(image):
    assert grid([{"a": Panel(image), "b": Panel(image)}, {"c": Panel(image)}]).shape[2] == 3


@pytest.mark.parametrize("size", [(200, 100), (100, 100), (100, 300)])
def test_titles_and_scales_fit_for_any_image_shape(size):
    """The edge of the page stays white."""
    panel = Panel(np.zeros((*size, 3), np.uint8), scale="sigmoid")
    page = grid([{"a title": panel, "another": panel}, {"a third": panel}])
    for edge in (page[:4], page[-4:], page[:, :4], page[:, -4:]):
        assert (edge == 255).all()
    assert (page[:30] < 128).any()  # the title

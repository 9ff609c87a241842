"""Images with their ground truth, and as training inputs."""

from collections.abc import Callable, Sequence

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb

from ..data.image_io import read_image
from ..data.semantic import read_labels
from ..utils.random_state import seeded_random
from .drawing import draw_annotations, draw_boxes, draw_label_map
from .panels import Panel


def training_panels(
    record: dict, mapper: Callable[[dict], dict], image_format: str, class_names: Sequence[str]
) -> dict[str, Panel]:
    """Return the panels of one image by title: its ground truth and two augmented versions.

    Args:
        record: a record in Detectron2's dataset format.
        mapper: the training mapper, see :func:`denseclip_d2.data.mapper.build_mapper`.
        image_format: ``INPUT.FORMAT``.
    """
    image = read_image(record["file_name"], "RGB")
    if "sem_seg_file_name" in record:
        drawn = draw_label_map(image, read_labels(record["sem_seg_file_name"]), len(class_names))
    else:
        drawn = draw_annotations(image, record["annotations"], class_names)
    row = {"ground truth": Panel(drawn)}
    for number in (1, 2):
        with seeded_random(0, number - 1):
            seen = mapper(record)
        image = convert_image_to_rgb(seen["image"].permute(1, 2, 0), image_format).astype(np.uint8)
        row[f"training input {number}"] = Panel(_draw(image, seen, class_names))
    return row


def _draw(image: np.ndarray, seen: dict, class_names: Sequence[str]) -> np.ndarray:
    if "sem_seg" in seen and "instances" not in seen:
        return draw_label_map(image, seen["sem_seg"].numpy(), len(class_names))
    fields = seen["instances"].get_fields()
    classes = fields["gt_classes"].tolist()
    labels = [class_names[c] for c in classes]
    return draw_boxes(image, fields["gt_boxes"], fields.get("gt_masks"), classes, labels)

"""Images with their ground truth, as files have them and as the trainer sees them."""

from collections.abc import Callable, Sequence

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import Instances

from ..data.pictures import read_image
from ..data.semantic import read_labels
from ..utils.random_state import seeded_random
from .drawing import draw_boxes, draw_ground_truth, draw_label_map
from .panels import Panel


def training_panels(
    record: dict,
    mapper: Callable[[dict], dict],
    image_format: str,
    class_names: Sequence[str],
    *,
    draws: int = 2,
    seed: int = 0,
) -> dict[str, Panel]:
    """The panels of one image, by title.

    Args:
        record: of a data set, in Detectron2's format.
        mapper: of training, :func:`denseclip_d2.data.mapper.build_mapper`.
        image_format: ``INPUT.FORMAT``.
        draws: how many times it is augmented.
        seed: of the augmentations.
    """
    image = read_image(record["file_name"], "RGB")
    if "sem_seg_file_name" in record:
        drawn = draw_label_map(image, read_labels(record["sem_seg_file_name"]), len(class_names))
    else:
        with_masks = all("segmentation" in a for a in record["annotations"])
        drawn = draw_ground_truth(image, record, class_names, with_masks=with_masks)
    row = {"ground truth": Panel(drawn)}
    for draw in range(draws):
        with seeded_random(seed, draw):
            seen = mapper(record)
        image = convert_image_to_rgb(seen["image"].permute(1, 2, 0), image_format).astype(np.uint8)
        row[f"as the trainer sees it, {draw + 1}"] = Panel(_draw(image, seen, class_names))
    return row


def _draw(image: np.ndarray, seen: dict, class_names: Sequence[str]) -> np.ndarray:
    if "sem_seg" in seen and "instances" not in seen:
        return draw_label_map(image, seen["sem_seg"].numpy(), len(class_names))
    instances: Instances = seen["instances"]
    classes = instances.gt_classes.tolist()
    masks = getattr(instances.gt_masks, "polygons", None) if instances.has("gt_masks") else None
    if masks is None and instances.has("gt_masks"):
        masks = instances.gt_masks.tensor.numpy()
    labels = [class_names[c] for c in classes]
    return draw_boxes(image, instances.gt_boxes.tensor.numpy(), masks, classes, labels)

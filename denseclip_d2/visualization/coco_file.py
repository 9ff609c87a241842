"""Predictions as a file in COCO's format."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from pycocotools import mask as mask_util

from ..utils.atomic import atomic_write
from .panels import label_map


@contextmanager
def coco_file(
    path: Path, class_names: Sequence[str], category_ids: Sequence[int]
) -> Iterator[Callable[[dict, dict], None]]:
    """Write a COCO file atomically. Yield the function that adds an image and its predictions.

    The function's first argument is the image's entry with ``file_name``, ``height`` and ``width``. Without
    an ``id`` the entry gets one. The second is the model's output. Its ``instances`` become annotations with
    scores, or each class of its ``sem_seg`` becomes one annotation. Annotations are written at once, because
    videos may be long.

    Args:
        class_names, category_ids: name and COCO id of each class of the model.
    """
    images: list[dict] = []
    numbers = count(1)
    with atomic_write(path, "w", encoding="utf-8") as file:

        def add(image: dict, predictions: dict) -> None:
            image = {"id": len(images) + 1, **image}
            images.append(image)
            if "instances" in predictions:
                annotations = instances_to_coco_json(predictions["instances"].to("cpu"), image["id"])
            else:
                annotations = _annotations_of_classes(label_map(predictions), image["id"])
            for annotation in annotations:
                annotation["category_id"] = category_ids[annotation["category_id"]]
                mask = annotation.get("segmentation")
                area = mask_util.area(mask) if mask else np.prod(annotation["bbox"][2:])
                number = next(numbers)
                row = json.dumps({"id": number, **annotation, "area": float(area), "iscrowd": 0})
                file.write(f"{',' if number > 1 else ''}\n{row}")

        categories = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]
        file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
        yield add
        file.write(f'\n],\n"images": {json.dumps(images)}}}\n')


def ids_of_dataset(name: str, num_classes: int) -> list[int]:
    """Return a dataset's category ids of the model's classes, or the class ids if the dataset has none."""
    own = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id", {}) if name else {}
    ids = {contiguous: category for category, contiguous in own.items()}
    return [ids[c] for c in range(num_classes)] if len(ids) == num_classes else [*range(num_classes)]


def _annotations_of_classes(labels: np.ndarray, image_id: int) -> list[dict]:
    """Return COCO's "stuff" annotations of a label map (H, W): one for the pixels of each class."""
    annotations = []
    for c in np.unique(labels).tolist():
        mask = mask_util.encode(np.asfortranarray(labels == c, dtype=np.uint8))
        mask["counts"] = mask["counts"].decode()
        box = mask_util.toBbox(mask).tolist()
        annotations.append({"image_id": image_id, "category_id": c, "bbox": box, "segmentation": mask})
    return annotations

"""What a model finds, as a file in COCO's format."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from pycocotools import mask as run_lengths

from ..utils.atomic import atomic_write
from .panels import label_map


class CocoFile:
    """Images and what was found in them, written as they come, as videos may be long."""

    def __init__(self, file: IO[str], class_names: Sequence[str], category_ids: Sequence[int]):
        """
        Args:
            class_names, category_ids: of the model's classes, in their order.
        """
        self.class_names = class_names
        self._file, self._ids = file, category_ids
        self._images: list[dict] = []
        self._found = 0
        categories = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]
        file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')

    def add(self, image: dict, predictions: dict) -> None:
        """
        Args:
            image: its ``file_name``, ``height``, ``width`` and whatever else; without an ``id``, it gets one.
            predictions: a model's ``instances``, with a score each; else each class of its ``sem_seg``.
        """
        image = {"id": len(self._images) + 1, **image}
        self._images.append(image)
        if "instances" in predictions:
            found = instances_to_coco_json(predictions["instances"].to("cpu"), image["id"])
        else:
            found = list(_classes_of(label_map(predictions), image["id"]))
        for annotation in found:
            self._found += 1
            annotation["category_id"] = self._ids[annotation["category_id"]]
            segmentation = annotation.get("segmentation")
            area = run_lengths.area(segmentation) if segmentation else np.prod(annotation["bbox"][2:])
            row = json.dumps({"id": self._found, **annotation, "area": float(area), "iscrowd": 0})
            self._file.write(f",\n{row}" if self._found > 1 else f"\n{row}")

    def end(self) -> None:
        self._file.write(f'\n],\n"images": {json.dumps(self._images)}}}\n')


@contextmanager
def coco_file(path: Path, class_names: Sequence[str], category_ids: Sequence[int]) -> Iterator[CocoFile]:
    """A :class:`CocoFile`, there whole when the block ends well, and else not at all."""
    with atomic_write(path, "w", encoding="utf-8") as file:
        coco = CocoFile(file, class_names, category_ids)
        yield coco
        coco.end()


def ids_of_dataset(name: str, num_classes: int) -> list[int]:
    """What a dataset calls the model's classes, for its evaluation; their numbers, where it does not say."""
    own = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id", {}) if name else {}
    ids = {contiguous: category for category, contiguous in own.items()}
    return [ids[c] for c in range(num_classes)] if len(ids) == num_classes else [*range(num_classes)]


def _classes_of(labels: np.ndarray, image_id: int) -> Iterator[dict]:
    """The pixels of each class in a label map, (H, W), as COCO has those of "stuff"."""
    for c in np.unique(labels).tolist():
        encoded = run_lengths.encode(np.asfortranarray(labels == c, dtype=np.uint8))
        encoded["counts"] = encoded["counts"].decode()
        box = run_lengths.toBbox(encoded).tolist()
        yield {"image_id": image_id, "category_id": c, "bbox": box, "segmentation": encoded}

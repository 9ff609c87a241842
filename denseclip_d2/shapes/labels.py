"""Label images of the "shapes" dataset, and its files without the unseen classes, made from annotations."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util

from .vocabulary import Vocabulary

IGNORED = 255  # the label of pixels that are neither trained nor evaluated on

# The position of a split seeds its random numbers. Do not change the order.
SPLITS = ("train", "val")


def annotation_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def categories_of(class_names: Sequence[str]) -> list[dict]:
    """Return COCO's categories with ids from 1."""
    return [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)]


def write_labels(folder: Path, split: str, coco: dict, vocabulary: Vocabulary) -> None:
    """Write the label images ``folder/<split>/*.png`` from a split's annotations."""
    _draw(folder / split, coco, {i: i - 1 for i in range(1, len(vocabulary.class_names) + 1)})


def write_seen(folder: Path, split: str, coco: dict, vocabulary: Vocabulary) -> None:
    """Write a split's annotations and label images for the seen classes to ``folder``.

    Unseen objects have no annotation, and their pixels have the label :data:`IGNORED`. Class ids are
    positions in ``vocabulary.seen_class_names``.
    """
    ids = {vocabulary.class_names.index(name) + 1: i for i, name in enumerate(vocabulary.seen_class_names)}
    annotations = [
        {**annotation, "category_id": ids[annotation["category_id"]] + 1}
        for annotation in coco["annotations"]
        if annotation["category_id"] in ids
    ]
    seen = {**coco, "categories": categories_of(vocabulary.seen_class_names), "annotations": annotations}
    file = annotation_file(folder, split)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(seen), encoding="utf-8")
    _draw(folder / "labels" / split, coco, ids)


def _draw(folder: Path, coco: dict, ids: Mapping[int, int]) -> None:
    """Write label images with the class ids of COCO's categories. The background gets the next class id."""
    folder.mkdir(parents=True)
    for image, annotations in annotated_images(coco):
        classes = [ids.get(annotation["category_id"], IGNORED) for annotation in annotations]
        label = paint(image, annotations, classes, background=len(ids))
        Image.fromarray(label).save(folder / image["file_name"])


def annotated_images(coco: dict) -> Iterator[tuple[dict, list[dict]]]:
    """Yield each image of a COCO file with its annotations in painting order."""
    annotations: defaultdict[int, list[dict]] = defaultdict(list)
    for annotation in coco["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    for image in coco["images"]:
        yield image, annotations[image["id"]]


def paint(image: dict, annotations: Sequence[dict], values: Sequence[int], background: int) -> np.ndarray:
    """Return (height, width) uint8 with each object's value. Later objects cover earlier ones."""
    height, width = image["height"], image["width"]
    label = np.full((height, width), background, dtype=np.uint8)
    for annotation, value in zip(annotations, values, strict=True):
        encoded = mask_util.frPyObjects(annotation["segmentation"], height, width)
        mask = mask_util.decode(encoded if annotation["iscrowd"] else mask_util.merge(encoded))
        label[mask.astype(bool)] = value
    return label

"""What is labeled in the "shapes" dataset beside objects, drawn from the objects' annotations."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from ..utils.atomic import atomic_dir
from .vocabulary import World

IGNORED = 255  # the label of pixels that no one is asked about

# Their positions, as entropy, keep the random numbers of the splits apart; hence the order must not change.
SPLITS = ("train", "val")


def add_labels(root: Path) -> bool:
    """Writes ``root/labels/{train,val}/*.png``, drawn from the annotations, unless they are there.

    ``root/labels`` appears when all is written.

    Returns: whether they had to be written.
    """
    labels = root / "labels"
    if labels.is_dir():
        return False
    with atomic_dir(labels) as partial:
        for split in SPLITS:
            (partial / split).mkdir(parents=True)
            coco = json.loads((root / "annotations" / f"instances_{split}.json").read_bytes())
            for image, annotations in annotated_images(coco):
                classes = [annotation["category_id"] - 1 for annotation in annotations]
                label = paint(image, annotations, classes, background=len(coco["categories"]))
                Image.fromarray(label).save(partial / split / image["file_name"])
    return True


def add_seen(root: Path, world: World) -> bool:
    """Writes ``root/seen``: annotations and label images without the classes that the world holds out.

    Their objects are not annotated, and their pixels are 255, which is ignored. The ids of the others are
    those of ``world.seen_class_names``. ``root/seen`` appears when all is written.

    Returns: whether it had to be written.
    """
    if (root / "seen").is_dir():
        return False
    new_ids = {world.class_names.index(name): i for i, name in enumerate(world.seen_class_names)}
    new_labels = np.full(256, IGNORED, dtype=np.uint8)
    for old, new in {**new_ids, len(world.class_names): len(new_ids)}.items():
        new_labels[old] = new
    with atomic_dir(root / "seen") as partial:
        (partial / "annotations").mkdir(parents=True)
        for split in SPLITS:
            coco = json.loads((root / "annotations" / f"instances_{split}.json").read_bytes())
            coco["categories"] = [{"id": i, "name": n} for i, n in enumerate(world.seen_class_names, start=1)]
            coco["annotations"] = [
                {**annotation, "category_id": new_ids[annotation["category_id"] - 1] + 1}
                for annotation in coco["annotations"]
                if annotation["category_id"] - 1 in new_ids
            ]
            (partial / "annotations" / f"instances_{split}.json").write_text(
                json.dumps(coco), encoding="utf-8"
            )
            (partial / "labels" / split).mkdir(parents=True)
            for path in sorted((root / "labels" / split).glob("*.png")):
                label = new_labels[np.asarray(Image.open(path))]
                Image.fromarray(label).save(partial / "labels" / split / path.name)
    return True


def annotated_images(coco: dict) -> Iterator[tuple[dict, list[dict]]]:
    """Each image of a COCO-format file with its annotations, in painting order."""
    annotations: defaultdict[int, list[dict]] = defaultdict(list)
    for annotation in coco["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    for image in coco["images"]:
        yield image, annotations[image["id"]]


def paint(image: dict, annotations: Sequence[dict], values: Sequence[int], background: int) -> np.ndarray:
    """Each object of an image in its value, below 256, later over earlier ones: (height, width) uint8."""
    height, width = image["height"], image["width"]
    label = np.full((height, width), background, dtype=np.uint8)
    for annotation, value in zip(annotations, values, strict=True):
        encoded = run_lengths.frPyObjects(annotation["segmentation"], height, width)
        mask = run_lengths.decode(encoded if annotation["iscrowd"] else run_lengths.merge(encoded))
        label[mask.astype(bool)] = value
    return label

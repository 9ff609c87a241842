"""Panoptic annotations of the "shapes" dataset: objects are things, and the background is stuff."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.coco_panoptic import merge_to_panoptic
from PIL import Image
from pycocotools import mask as mask_util

from ..data.semantic import load_semantic_folder
from .labels import IGNORED, annotated_images, annotation_file, paint
from .vocabulary import BACKGROUND, Vocabulary

THINGS = "things"  # the stuff class of all objects' pixels in Panoptic FPN
LABEL_DIVISOR = 1000  # Panoptic-DeepLab outputs class * LABEL_DIVISOR + number of the instance


def write_panoptic(folder: Path, split: str, coco: dict, vocabulary: Vocabulary) -> None:
    """Write a split's ``panoptic_<split>.json`` and ``<split>/*.png`` in COCO's panoptic format.

    A pixel belongs to the topmost object, or to the background, which is the last category.
    ``stuff_<split>/*.png`` have Detectron2's stuff labels for Panoptic FPN: 0 for things, 1 for the
    background.
    """
    (folder / split).mkdir()
    (folder / f"stuff_{split}").mkdir()
    stuff_id = len(vocabulary.class_names) + 1
    annotations = []
    for image, objects in annotated_images(coco):
        background, file_name = len(objects) + 1, image["file_name"]
        ids = paint(image, objects, range(1, background), background)
        # COCO's colors: an id is red + 256 green + 256^2 blue. No image has 256 segments.
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=-1)).save(folder / split / file_name)
        Image.fromarray((ids == background).astype(np.uint8)).save(folder / f"stuff_{split}" / file_name)
        segments = [{key: x[key] for key in ("category_id", "iscrowd")} for x in objects]
        segments.append({"category_id": stuff_id, "iscrowd": 0})
        visible = _visible(segments, ids)
        annotations.append({"image_id": image["id"], "file_name": file_name, "segments_info": visible})
    categories = [{**category, "isthing": 1} for category in coco["categories"]]
    categories.append({"id": stuff_id, "name": BACKGROUND, "isthing": 0})
    panoptic = {"images": coco["images"], "categories": categories, "annotations": annotations}
    (folder / f"panoptic_{split}.json").write_text(json.dumps(panoptic), encoding="utf-8")


def _visible(segments: Sequence[dict], ids: np.ndarray) -> list[dict]:
    """Return the segments that have pixels, with id (position plus one), area and box."""
    numbers = range(1, len(segments) + 1)
    masks = mask_util.encode(np.asfortranarray(ids[..., None] == np.array(numbers), dtype=np.uint8))
    areas, boxes = mask_util.area(masks).tolist(), mask_util.toBbox(masks).astype(int).tolist()
    return [
        {"id": i, **segment, "area": area, "bbox": box}
        for i, segment, area, box in zip(numbers, segments, areas, boxes, strict=True)
        if area
    ]


def register_panoptic(name: str, root: Path, split: str, vocabulary: Vocabulary, **metadata) -> None:
    """Register a split's panoptic annotations with Detectron2 twice.

    ``name`` has segments and semantic labels, for Panoptic-DeepLab. ``name`` + "_separated" has objects and
    stuff labels, for Panoptic FPN.

    Args:
        metadata: more of Detectron2's metadata.

    Raises:
        AssertionError: a name is already registered.
    """
    separated = f"{name}_separated"
    images, masks, objects = root / split, root / "panoptic" / split, annotation_file(root, split)
    segments = root / "panoptic" / f"panoptic_{split}.json"
    labels, stuff = root / "labels" / split, root / "panoptic" / f"stuff_{split}"
    classes, stuff_id = list(vocabulary.semantic_class_names), len(vocabulary.class_names) + 1

    def load_segments() -> list[dict]:
        return merge_to_panoptic(
            _load_segments(segments, images, masks, stuff_id), load_semantic_folder(images, labels)
        )

    def load_separated() -> list[dict]:
        records = load_coco_json(str(objects), str(images), separated)
        return merge_to_panoptic(records, load_semantic_folder(images, stuff))

    DatasetCatalog.register(name, load_segments)
    DatasetCatalog.register(separated, load_separated)
    common = {
        **metadata, "evaluator_type": "coco_panoptic_seg", "ignore_label": IGNORED,
        "image_root": str(images), "json_file": str(objects),
        "panoptic_root": str(masks), "panoptic_json": str(segments),
        "thing_dataset_id_to_contiguous_id": {i: i - 1 for i in range(1, stuff_id)},
    }  # fmt: skip
    MetadataCatalog.get(name).set(
        **common, sem_seg_root=str(labels), thing_classes=classes, stuff_classes=classes,
        stuff_dataset_id_to_contiguous_id={i: i - 1 for i in range(1, stuff_id + 1)},
        label_divisor=LABEL_DIVISOR,
    )  # fmt: skip
    MetadataCatalog.get(separated).set(
        **common, sem_seg_root=str(stuff), thing_classes=classes[:-1], stuff_classes=[THINGS, BACKGROUND],
        stuff_dataset_id_to_contiguous_id={0: 0, stuff_id: 1},
    )  # fmt: skip


def _load_segments(file: Path, images: Path, masks: Path, stuff_id: int) -> list[dict]:
    """Return images and segments in Detectron2's format. Detectron2's reader expects JPEG images."""
    coco = json.loads(file.read_bytes())
    sizes = {image["id"]: {"height": image["height"], "width": image["width"]} for image in coco["images"]}
    return [
        {
            "file_name": str(images / x["file_name"]), "image_id": x["image_id"], **sizes[x["image_id"]],
            "pan_seg_file_name": str(masks / x["file_name"]),
            "segments_info": [
                {**s, "category_id": s["category_id"] - 1, "isthing": s["category_id"] < stuff_id}
                for s in x["segments_info"]
            ],
        }
        for x in coco["annotations"]
    ]  # fmt: skip

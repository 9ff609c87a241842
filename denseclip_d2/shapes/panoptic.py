"""Panoptic annotations of the "shapes" dataset: every object a thing, and the background stuff."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.coco_panoptic import merge_to_panoptic
from PIL import Image

from ..data.semantic import load_semantic_folder
from ..utils.atomic import atomic_dir
from .labels import IGNORED, SPLITS, annotated_images, paint
from .vocabulary import BACKGROUND, World

THINGS = "things"  # of the stuff that Panoptic FPN tells apart, what are objects
LABEL_DIVISOR = 1000  # in Panoptic-DeepLab's output, a segment is its class times this, and a number


def add_panoptic(root: Path) -> bool:
    """Writes ``root/panoptic``, drawn from the annotations, unless it is there.

    ``panoptic_{train,val}.json`` and ``{train,val}/*.png`` are in COCO's panoptic format. A pixel belongs to
    the topmost object there, or to the background, which is the last category. ``stuff_{train,val}/*.png``
    are what Detectron2 makes of them for Panoptic FPN: 0 for all things, 1 for the background.

    Returns: whether it had to be written.
    """
    if (root / "panoptic").is_dir():
        return False
    with atomic_dir(root / "panoptic") as partial:
        for split in SPLITS:
            coco = json.loads((root / "annotations" / f"instances_{split}.json").read_bytes())
            categories = [{**category, "isthing": 1} for category in coco["categories"]]
            categories.append({"id": len(categories) + 1, "name": BACKGROUND, "isthing": 0})
            annotations = _draw_split(partial, split, coco)
            panoptic = {"images": coco["images"], "categories": categories, "annotations": annotations}
            (partial / f"panoptic_{split}.json").write_text(json.dumps(panoptic), encoding="utf-8")
    return True


def _draw_split(folder: Path, split: str, coco: dict) -> list[dict]:
    """Writes the label images of one split, and returns its panoptic annotations."""
    (folder / split).mkdir()
    (folder / f"stuff_{split}").mkdir()
    annotations = []
    for image, objects in annotated_images(coco):
        background = len(objects) + 1
        ids = paint(image, objects, range(1, background), background)
        # COCO's colors: an id is red + 256 green + 256^2 blue, and no image has 256 segments.
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=-1)).save(folder / split / image["file_name"])
        stuff = (ids == background).astype(np.uint8)
        Image.fromarray(stuff).save(folder / f"stuff_{split}" / image["file_name"])
        segments = [
            *({"category_id": x["category_id"], "iscrowd": x["iscrowd"]} for x in objects),
            {"category_id": len(coco["categories"]) + 1, "iscrowd": 0},
        ]
        annotations.append(
            {
                "image_id": image["id"],
                "file_name": image["file_name"],
                "segments_info": _visible(segments, ids),
            }
        )
    return annotations


def _visible(segments: Sequence[dict], ids: np.ndarray) -> list[dict]:
    """The segments that have pixels, with their ids, which are their positions plus one, and their extent."""
    visible = []
    for i, segment in enumerate(segments, start=1):
        y, x = np.nonzero(ids == i)
        if len(x):
            box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            visible.append({"id": i, **segment, "area": len(x), "bbox": [int(side) for side in box]})
    return visible


def register_panoptic(name: str, root: Path, split: str, world: World, **metadata) -> None:
    """Register the panoptic annotations of a split with Detectron2, in both of its ways.

    Under ``name``, as Panoptic-DeepLab takes them: segments, whose classes are those of
    ``world.semantic_class_names``, with ``root/labels`` beside them. Under ``name`` and "_separated", as
    Panoptic FPN takes them: objects, and stuff apart.

    Args:
        metadata: more of Detectron2's metadata.

    Raises:
        AssertionError: a name is already registered.
    """
    folder, images, num_things = root / "panoptic", root / split, len(world.class_names)
    files = {
        "image_root": str(images),
        "json_file": str(root / "annotations" / f"instances_{split}.json"),
        "panoptic_root": str(folder / split),
        "panoptic_json": str(folder / f"panoptic_{split}.json"),
    }
    common = {
        **files,
        **metadata,
        "evaluator_type": "coco_panoptic_seg",
        "ignore_label": IGNORED,
        "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(num_things)},
    }

    def segments() -> list[dict]:
        labels = load_semantic_folder(images, root / "labels" / split)
        return merge_to_panoptic(_load_segments(files, num_things), labels)

    def objects_and_stuff() -> list[dict]:
        stuff = load_semantic_folder(images, folder / f"stuff_{split}")
        return merge_to_panoptic(load_coco_json(files["json_file"], str(images), separated), stuff)

    classes = list(world.semantic_class_names)
    DatasetCatalog.register(name, segments)
    MetadataCatalog.get(name).set(
        **common,
        sem_seg_root=str(root / "labels" / split),
        thing_classes=classes,
        stuff_classes=classes,
        stuff_dataset_id_to_contiguous_id={i + 1: i for i in range(num_things + 1)},
        label_divisor=LABEL_DIVISOR,
    )
    separated = f"{name}_separated"
    DatasetCatalog.register(separated, objects_and_stuff)
    MetadataCatalog.get(separated).set(
        **common,
        sem_seg_root=str(folder / f"stuff_{split}"),
        thing_classes=classes[:-1],
        stuff_classes=[THINGS, BACKGROUND],
        stuff_dataset_id_to_contiguous_id={0: 0, num_things + 1: 1},
    )


def _load_segments(files: dict[str, str], num_things: int) -> list[dict]:
    """Images and segments in Detectron2's format; its own reader takes every image for a JPEG."""
    coco = json.loads(Path(files["panoptic_json"]).read_bytes())
    sizes = {image["id"]: {"height": image["height"], "width": image["width"]} for image in coco["images"]}
    return [
        {
            "file_name": str(Path(files["image_root"], x["file_name"])),
            "image_id": x["image_id"],
            **sizes[x["image_id"]],
            "pan_seg_file_name": str(Path(files["panoptic_root"], x["file_name"])),
            "segments_info": [
                {**s, "category_id": s["category_id"] - 1, "isthing": s["category_id"] <= num_things}
                for s in x["segments_info"]
            ],
        }
        for x in coco["annotations"]
    ]

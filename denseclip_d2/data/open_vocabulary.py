"""Datasets of the open-vocabulary protocols: training labels base classes, and tests ask for novel ones too.

- OV-COCO: 48 base and 17 novel classes of COCO 2017. Zero-Shot Object Detection (Bansal et al., ECCV 2018)
  has the names. OVR-CNN (Zareian et al., CVPR 2021) has the images: those of train2017 with an object of a
  base class, and those of val2017 with an object of the 65 classes. The other 15 classes have no labels.
- OV-LVIS: the 866 common and frequent classes of LVIS v1 are base, the 337 rare classes are novel (ViLD, Gu
  et al., ICLR 2022). Models are tested on ``lvis_v1_val``.
"""

import json
from collections.abc import Collection, Mapping
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from ..utils.text import read_text
from .checks import explained_annotation_errors

COCO_BASE = (
    "person", "bicycle", "car", "motorcycle", "train", "truck", "boat", "bench", "bird", "horse", "sheep",
    "bear", "zebra", "giraffe", "backpack", "handbag", "suitcase", "frisbee", "skis", "kite", "surfboard",
    "bottle", "fork", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "pizza",
    "donut", "chair", "bed", "toilet", "tv", "laptop", "mouse", "remote", "microwave", "oven", "toaster",
    "refrigerator", "book", "clock", "vase", "toothbrush",
)  # fmt: skip
COCO_NOVEL = (
    "airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard", "skateboard", "cup",
    "knife", "cake", "couch", "keyboard", "sink", "scissors",
)  # fmt: skip
LVIS_BASE = tuple(c["synonyms"][0] for c in LVIS_CATEGORIES if c["frequency"] != "r")


def register_open_vocabulary() -> None:
    """Register the datasets of the protocols, which read the files of ``coco_2017`` and ``lvis_v1``.

    Raises:
        AssertionError: a name is already registered.
    """
    register_classes("ov_coco_2017_train", "coco_2017_train", COCO_BASE)
    both = (*COCO_BASE, *COCO_NOVEL)
    register_classes("ov_coco_2017_val", "coco_2017_val", both, novel_classes=COCO_NOVEL)
    register_classes("ov_lvis_v1_train", "lvis_v1_train", LVIS_BASE)


def register_classes(name: str, whole: str, classes: Collection[str], **metadata) -> None:
    """Register the objects of some classes of a dataset as another dataset.

    Images without such an object are left out. The classes keep the order of the whole dataset. A part of
    LVIS is for training alone: it has no evaluator.

    Args:
        whole: name of a registered dataset of COCO or LVIS.
        classes: names of its classes.
        metadata: further metadata of the part.

    Raises:
        AssertionError: the name is already registered.
    """
    theirs = MetadataCatalog.get(whole)
    names = [words for words in theirs.thing_classes if words in classes]
    class_of = {theirs.thing_classes.index(words): i for i, words in enumerate(names)}
    if theirs.evaluator_type == "coco":
        id_of = {class_: id_ for id_, class_ in theirs.thing_dataset_id_to_contiguous_id.items()}
        ids = {id_of[class_]: i for class_, i in class_of.items()}
        metadata |= {
            "evaluator_type": "coco",
            "thing_dataset_id_to_contiguous_id": ids,
            "coco_content": partial(_content, theirs.json_file, ids),
        }
    else:
        counts = {count["id"] - 1: count["image_count"] for count in theirs.class_image_count}
        metadata["class_image_count"] = [{"id": i, "image_count": counts[k]} for k, i in class_of.items()]
    DatasetCatalog.register(name, partial(_records, whole, class_of))
    MetadataCatalog.get(name).set(
        source=f"{theirs.json_file} ({len(names)} of {len(theirs.thing_classes)} classes)",
        image_root=theirs.image_root, thing_classes=names, **metadata,
    )  # fmt: skip


def _records(whole: str, class_of: Mapping[int, int]) -> list[dict]:
    """Return the images of a dataset with objects of some classes, and these objects alone."""
    with explained_annotation_errors([whole]):
        records = DatasetCatalog.get(whole)
    for record in records:
        record["annotations"] = [
            {**annotation, "category_id": class_of[annotation["category_id"]]}
            for annotation in record["annotations"]
            if annotation["category_id"] in class_of
        ]
    return [record for record in records if record["annotations"]]


def _content(json_file: str, ids: Collection[int]) -> dict:
    """Return the content of a COCO file for the images with objects of some categories, and these objects."""
    content = json.loads(read_text(json_file))
    annotations = [a for a in content["annotations"] if a["category_id"] in ids]
    labeled = {annotation["image_id"] for annotation in annotations}
    return {
        "images": [image for image in content["images"] if image["id"] in labeled],
        "annotations": annotations,
        "categories": [category for category in content["categories"] if category["id"] in ids],
    }

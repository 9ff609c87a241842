"""Prepare ground truth and detections in COCO's format for an evaluator."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pycocotools import mask as mask_util

from ..data.coco_masks import encode, mask_area

logger = logging.getLogger(__name__)

Content = Mapping[str, Any]
"""A file in COCO's or LVIS's format: lists of "images", "annotations" and "categories"."""
Results = Sequence[Mapping[str, Any]]
"""Detections in COCO's format of results."""


def category_ids(content: Content, metadata: Any) -> list:
    """Return the ids of a file's categories by class, and then the ids of the other categories.

    Args:
        metadata: Detectron2's metadata of the dataset. Without ``thing_dataset_id_to_contiguous_id``, the
            classes are in the order of the ids, as in Detectron2.
    """
    classes = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    if not classes and metadata.get("evaluator_type") == "lvis":
        classes = {class_ + 1: class_ for class_ in range(len(metadata.thing_classes))}
    ids = sorted(classes, key=classes.__getitem__)
    return ids + _sorted({category["id"] for category in content.get("categories", ())} - set(ids))


def with_category_ids(results: Results, ids: Sequence[Any]) -> list[dict]:
    """Return detections with the ids of categories in place of the classes."""
    return [{**result, "category_id": ids[result["category_id"]]} for result in results]


def finite(results: Sequence[dict]) -> list[dict]:
    """Return the detections with a finite score and box, and warn of others.

    pycocotools matches a box of NaN with any object, and hotcoco refuses a score of NaN.
    """
    kept = [result for result in results if math.isfinite(result["score"] + sum(result.get("bbox", ())))]
    if left_out := len(results) - len(kept):
        logger.warning(
            "%d of %d detections are left out, because their score or box is NaN or infinite. If training "
            "diverged, evaluate an earlier checkpoint.",
            left_out,
            len(results),
        )
    return kept


def renumbered(
    content: Content,
    results: Results,
    task: str,
    categories: Sequence[Any],
    *,
    image_ids: Collection[Any] | None = None,
    lvis: bool = False,
) -> tuple[dict[str, list[dict]], list[dict]]:
    """Return ground truth and detections with the fields that an evaluator reads, under ids from 1.

    Evaluators accept few kinds of ids, and pycocotools reads a match with annotation 0 as no match. Images
    are numbered in the order of their ids, as in pycocotools, where the order decides ties of scores.

    Args:
        task: "bbox" or "segm".
        categories: ids of the categories to evaluate, by class.
        image_ids: ids of the images to evaluate; None: all.
        lvis: keep the fields that LVIS's rules need.

    Raises:
        ValueError: a detection is of an image or of a category that the ground truth does not have.
    """
    images = {image["id"]: image for image in content["images"]}
    classes = {id_: k for k, id_ in enumerate(categories, start=1)}
    _check_ids(results, images, classes)
    evaluated = images.keys() if image_ids is None else images.keys() & set(image_ids)
    numbers = {id_: i for i, id_ in enumerate(_sorted(evaluated), start=1)}
    annotations: list[dict] = []
    for annotation in content["annotations"]:
        image, category = numbers.get(annotation["image_id"]), classes.get(annotation["category_id"])
        if image and category:
            ids = {"id": len(annotations) + 1, "image_id": image, "category_id": category}
            values = _evaluated(annotation, images[annotation["image_id"]], task, lvis)
            annotations.append(ids | values)
    if task == "segm" and (count := sum(not mask_of(annotation) for annotation in content["annotations"])):
        logger.warning("%d objects have no mask. They count as missed in the mask AP.", count)
    shape = "bbox" if task == "bbox" else "segmentation"
    found = [
        {"image_id": image, "category_id": classes[result["category_id"]], "score": result["score"],
         shape: result[shape]}
        for result in results if (image := numbers.get(result["image_id"]))
    ]  # fmt: skip
    truth = {
        "images": [_image(images[id_], i, classes, lvis) for id_, i in numbers.items()],
        "annotations": annotations,
        "categories": _categories(content, classes),
    }
    return truth, found


def box_of(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> Sequence[float]:
    """Return the left, top, width and height of an object, from the mask if the file has no box."""
    if annotation.get("bbox"):
        return annotation["bbox"]
    if mask := mask_of(annotation):
        return mask_util.toBbox(encode(mask, image["height"], image["width"])).tolist()
    return [0.0] * 4


def area_of(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> float:
    """Return the area of an object, from the mask or else the box if the file has no area."""
    if annotation.get("area") is not None:
        return annotation["area"]
    if mask := mask_of(annotation):
        return mask_area(mask, image["height"], image["width"])
    _, _, width, height = box_of(annotation, image)
    return width * height


def mask_of(annotation: Mapping[str, Any]) -> dict | list:
    """Return the RLE, or the polygons of three points or more, which Detectron2's loader keeps."""
    mask = annotation.get("segmentation") or []
    return mask if isinstance(mask, dict) else [p for p in mask if len(p) >= 6 and len(p) % 2 == 0]


def _check_ids(results: Results, images: Collection[Any], categories: Collection[Any]) -> None:
    for result in results:
        image, category = result["image_id"], result["category_id"]
        if image not in images or category not in categories:
            raise ValueError(
                f"The ground truth does not have image {image!r} or category {category!r} of a detection. "
                "The detections are of other data. Evaluate the model again."
            )


def _sorted(ids: Collection[Any]) -> list:
    """Sort numbers before words."""
    return sorted(ids, key=lambda id_: (isinstance(id_, str), id_))


def _evaluated(annotation: Mapping[str, Any], image: Mapping[str, Any], task: str, lvis: bool) -> dict:
    # The package lvis reads `ignore`, and COCO's evaluators read `iscrowd`.
    flag = "ignore" if lvis else "iscrowd"
    values = {"area": area_of(annotation, image), "iscrowd": 0, flag: int(bool(annotation.get(flag)))}
    if task == "bbox":
        return values | {"bbox": box_of(annotation, image)}
    size = [image["height"], image["width"]]
    return values | {"segmentation": mask_of(annotation) or {"size": size, "counts": [size[0] * size[1]]}}


def _image(image: Mapping[str, Any], number: int, classes: Mapping[Any, int], lvis: bool) -> dict:
    values = {key: image[key] for key in ("height", "width") if key in image}
    for key in ("neg_category_ids", "not_exhaustive_category_ids") if lvis else ():
        values[key] = [classes[id_] for id_ in image.get(key, ()) if id_ in classes]
    return {"id": number, **values}


def _categories(content: Content, classes: Mapping[Any, int]) -> list[dict]:
    frequencies = {category["id"]: category.get("frequency") for category in content["categories"]}
    return [{"id": k, "name": str(k), "frequency": frequencies.get(id_) or "f"} for id_, k in classes.items()]

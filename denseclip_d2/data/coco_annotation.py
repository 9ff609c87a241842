"""Normalize one annotation of a COCO file, so that all evaluators and mappers read it alike."""

import math
from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from .coco_masks import mask_area, mask_box, normalize_mask


@dataclass
class Changes:
    """What a reader changed in a file.

    Attributes:
        first: the number of changes and the first changed item, by kind of change.
        mask_faults: the objects without a valid mask, except crowds, and the reason.
    """

    first: dict[str, tuple[int, str]] = field(default_factory=dict)
    mask_faults: list[str] = field(default_factory=list)

    def add(self, what: str, item: str, count: int = 1) -> None:
        """Count a change of one kind, such as "iscrowd was missing: set to 0"."""
        before, example = self.first.get(what, (0, item))
        self.first[what] = before + count, example

    def __bool__(self) -> bool:
        return bool(self.first)

    def __str__(self) -> str:
        rows = [(what, count, example) for what, (count, example) in self.first.items()]
        return tabulate(rows, ["change", "items", "first"], tablefmt="github")


def normalize_annotation(annotation: dict, image: dict, where: str, changes: Changes) -> bool:
    """Normalize ``iscrowd``, ``segmentation``, ``bbox`` and ``area`` in place.

    Args:
        image: the annotation's, with ``width`` and ``height`` in pixels.
        where: names the annotation in messages.
        changes: gets the changes, and the fault of a mask.

    Returns: False if the annotation has to be left out: it has no box, or none inside the image.
    Raises:
        ValueError: COCO's format does not allow a value, and its meaning is unknown.
    """
    _set_crowd(annotation, where, changes)
    given = annotation.pop("segmentation", None)
    mask, fault = normalize_mask(given, image["height"], image["width"])
    if not _set_box(annotation, mask, image, where, changes):
        return False
    if mask:
        annotation["segmentation"] = mask
    if fault:
        changes.add(f"{'part of ' if mask else ''}the mask was dropped: {fault}", where)
    elif mask is not given and mask:
        changes.add("the mask was in another form: made polygons or an RLE", where)
    if not mask and not annotation["iscrowd"]:
        changes.mask_faults.append(f"{where}: {fault or 'no segmentation'}")
    _set_area(annotation, mask, image, where, changes)
    if (annotation.get("attributes") or {}).get("rotation"):  # CVAT's
        changes.add("attributes.rotation is not 0: the box is read as an upright one", where)
    return True


def _set_crowd(annotation: dict, where: str, changes: Changes) -> None:
    crowd = annotation.get("iscrowd")
    if type(crowd) is not int or crowd not in (0, 1):
        if crowd not in (None, True, False, "0", "1", ""):
            raise ValueError(f"{where} has iscrowd {crowd!r}. Set it to 0 or 1.")
        annotation["iscrowd"] = int(crowd or 0)
        was = "missing" if crowd is None else repr(crowd)
        changes.add(f"iscrowd was {was}: set to {annotation['iscrowd']}", where)
    if annotation.get("ignore") not in (None, 0) and not annotation["iscrowd"]:
        annotation["iscrowd"] = 1
        changes.add("ignore was set: read as iscrowd 1", where)


def _set_box(annotation: dict, mask: Any, image: dict, where: str, changes: Changes) -> bool:
    """Set the box. Return False if there is none, or none inside the image."""
    given: Any = annotation.get("bbox")
    box, width, height = given, image["width"], image["height"]
    if not given:
        if not mask:
            changes.add("neither box nor mask, as of a point: annotation left out", where)
            return False
        box = mask_box(mask, height, width)
        changes.add("bbox was missing: computed from the mask", where)
    elif not _is_box(given):
        try:
            box = [float(x) for x in given]
        except (TypeError, ValueError):
            box = []
        changes.add("bbox was no list of numbers", where)
    if not _is_box(box):
        raise ValueError(
            f"{where} has the bbox {given!r}. Write x, y, width and height, all of them finite numbers."
        )
    x, y, w, h = box
    if w < 0 or h < 0:
        raise ValueError(
            f"{where} has the bbox {box}, of negative width or height. Write x, y, width and height."
        )
    if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:  # files may count pixels from 1
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if x2 <= x1 or y2 <= y1:
            changes.add("bbox was outside the image: annotation left out", where)
            return False
        box = [x1, y1, x2 - x1, y2 - y1]
        changes.add("bbox reached beyond the image: cut at its edges", where)
    annotation["bbox"] = box
    return True


def _set_area(annotation: dict, mask: Any, image: dict, where: str, changes: Changes) -> None:
    area: Any = annotation.get("area")
    try:
        value = float(area)
    except (TypeError, ValueError):
        value = 0.0
    if not 0 < value < math.inf:
        value = mask_area(mask, image["height"], image["width"]) or math.prod(annotation["bbox"][2:])
    if type(area) not in (int, float) or value != area:
        changes.add(f"area was {'missing' if area is None else 'no number above 0'}: computed", where)
        annotation["area"] = value


def _is_box(box: Any) -> bool:
    return (
        type(box) is list and len(box) == 4 and {*map(type, box)} <= {int, float} and math.isfinite(sum(box))
    )

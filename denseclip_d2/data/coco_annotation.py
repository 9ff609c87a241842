"""One annotation of a COCO file: its flag, mask, box and area, made such that all read them alike."""

import math
from typing import Any

from .changes import Changes
from .coco_masks import mask_area, mask_box, normalize_mask

NUMBERS = {int, float}


class AnnotationNormalizer:
    """Normalizes the values of annotations, in place.

    Attributes:
        changes: what was changed.
        mask_faults: the objects without a valid mask, crowds apart, and why.
    """

    def __init__(self, changes: Changes):
        self.changes = changes
        self.mask_faults: list[str] = []

    def __call__(self, annotation: dict, image: dict, where: str) -> bool:
        """Normalize ``iscrowd``, ``segmentation``, ``bbox`` and ``area``.

        Args:
            image: the annotation's, with ``width`` and ``height`` in pixels.
            where: names the annotation in messages.

        Returns: False if the annotation is to be left out: it has no box, or all of it is outside the image.
        Raises:
            ValueError: a value is none that COCO's format allows, and says not what was meant.
        """
        self._set_crowd(annotation, where)
        given = annotation.pop("segmentation", None)
        mask, fault = normalize_mask(given, image["height"], image["width"])
        if not self._set_box(annotation, mask, image, where):
            return False
        if mask:
            annotation["segmentation"] = mask
        if fault:
            self.changes.add(f"{'part of ' if mask else ''}the mask was dropped: {fault}", where)
        elif mask is not given and mask:
            self.changes.add("the mask was written otherwise: made polygons or an RLE", where)
        if not mask and not annotation["iscrowd"]:
            self.mask_faults.append(f"{where}: {fault or 'no segmentation'}")
        self._set_area(annotation, mask, image, where)
        if (annotation.get("attributes") or {}).get("rotation"):  # CVAT's
            self.changes.add("attributes.rotation is not 0: the box is read as an upright one", where)
        return True

    def _set_crowd(self, annotation: dict, where: str) -> None:
        crowd = annotation.get("iscrowd")
        if type(crowd) is not int or crowd not in (0, 1):
            if crowd not in (None, True, False, "0", "1", ""):
                raise ValueError(f"{where} has iscrowd {crowd!r}; it has to be 0 or 1.")
            was = "missing" if crowd is None else repr(crowd)
            annotation["iscrowd"] = int(crowd or 0)
            self.changes.add(f"iscrowd was {was}: {annotation['iscrowd']}", where)
        if annotation.get("ignore") not in (None, 0) and not annotation["iscrowd"]:
            annotation["iscrowd"] = 1
            self.changes.add("ignore was set: read as iscrowd 1", where)

    def _set_box(self, annotation: dict, mask: Any, image: dict, where: str) -> bool:
        """Set the box; False where there is none, or none inside the image."""
        box: Any = annotation.get("bbox")
        if not box and not mask:
            self.changes.add("neither box nor mask, as of a point: annotation left out", where)
            return False
        if not box:
            box = mask_box(mask, image["height"], image["width"])
            self.changes.add("bbox was missing: the mask's", where)
        if not _is_box(box):
            try:
                box = [float(x) for x in box]
            except (TypeError, ValueError):
                box = []
            if not _is_box(box):
                raise ValueError(
                    f"{where} has the bbox {annotation.get('bbox')!r}; x, y, width and height are needed, "
                    "all finite."
                )
            if annotation.get("bbox"):
                self.changes.add("bbox was no list of numbers", where)
        x, y, w, h = box
        if w < 0 or h < 0:
            raise ValueError(
                f"{where} has the bbox {box}, of negative width or height. COCO's boxes are x, y, width and "
                "height."
            )
        width, height = image["width"], image["height"]
        if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:  # a pixel is how files count
            x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
            if x2 <= x1 or y2 <= y1:
                self.changes.add("bbox was outside the image: annotation left out", where)
                return False
            box = [x1, y1, x2 - x1, y2 - y1]
            self.changes.add("bbox reached beyond the image: cut at its edges", where)
        annotation["bbox"] = box
        return True

    def _set_area(self, annotation: dict, mask: Any, image: dict, where: str) -> None:
        area: Any = annotation.get("area")
        if type(area) in (int, float) and 0 < area < math.inf:
            return
        try:
            value = float(area)
        except (TypeError, ValueError):
            value = 0.0
        if not 0 < value < math.inf:
            value = mask_area(mask, image["height"], image["width"]) or math.prod(annotation["bbox"][2:])
        if value != area:
            self.changes.add(
                f"area was {'missing' if area is None else 'no number above 0'}: computed", where
            )
        annotation["area"] = value


def _is_box(box: Any) -> bool:
    return type(box) is list and len(box) == 4 and {*map(type, box)} <= NUMBERS and math.isfinite(sum(box))

"""Read XML files in Pascal VOC's format, with the objects of one image."""

import math
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from xml.etree import ElementTree

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocObject(NamedTuple):
    """One ``<object>``. The corners are x0, y0, x1, y1 as the file has them, the smaller first."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


class VocAnnotation(NamedTuple):
    """An XML file.

    Attributes:
        image_name: the last part of ``<filename>``; empty if there is none.
        size: width and height in pixels; None if the file does not have them.
    """

    path: Path
    image_name: str
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]


def read_annotation(path: Path) -> VocAnnotation:
    """Read an XML file.

    Raises:
        ValueError: the file is not XML, or incomplete. The error names the file and the object.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path} is not XML: {error}.") from error
    if root.tag != "annotation":
        raise ValueError(f"{path} is not in Pascal VOC's format: its root is <{root.tag}>, not <annotation>.")
    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        try:
            objects.append(_read_object(element))
        except ValueError as error:
            raise ValueError(f"{path}: object {number} {error}.") from None
    image_name = PureWindowsPath(_text(root, "filename")).name  # which also splits at "/"
    return VocAnnotation(path, image_name, _size(root), tuple(objects))


def counts_from_zero(annotations: Iterable[VocAnnotation]) -> bool:
    """Return whether boxes are coordinates, and not VOC's numbers of pixels, which begin at 1.

    Numbers of pixels are whole numbers, except for a few in VOC's own files.
    """
    boxes = [voc_object.corners for annotation in annotations for voc_object in annotation.objects]
    fractions = sum(not all(x.is_integer() for x in box) for box in boxes)
    return any(min(box) < 1 for box in boxes) or 2 * fractions > len(boxes)


def _read_object(element: ElementTree.Element) -> VocObject:
    """Read an object, or raise a ValueError with the end of a sentence about it."""
    name, box = _text(element, "name"), element.find("bndbox")
    if not name:
        raise ValueError("has no <name>")
    if box is None:
        raise ValueError(f"({name}) has no <bndbox>")
    texts = [_text(box, key) for key in CORNERS]
    try:
        (x0, x1), (y0, y1) = sorted(map(float, texts[::2])), sorted(map(float, texts[1::2]))
        if not math.isfinite(x0 + x1 + y0 + y1):
            raise ValueError
    except ValueError:
        found = ", ".join(f"<{key}> {text!r}" for key, text in zip(CORNERS, texts, strict=True))
        raise ValueError(f"({name}) has a box that is not four finite numbers: {found}") from None
    return VocObject(name, (x0, y0, x1, y1), _text(element, "difficult").lower() in ("1", "true"))


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(_text(root, f"size/{side}"))) for side in ("width", "height"))
    except (OverflowError, ValueError):
        return None
    return (width, height) if min(width, height) > 0 else None


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()

"""XML files of Pascal VOC's format: the objects of one image."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from xml.etree import ElementTree

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObject:
    """One ``<object>``. The corners are x0, y0, x1, y1 as the file has them, the smaller first."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class VocAnnotation:
    """An XML file.

    Attributes:
        image_name: the last part of ``<filename>``; empty without.
        size: width and height in pixels; None where the file does not tell.
    """

    path: Path
    image_name: str
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]


def read_annotation(path: Path) -> VocAnnotation:
    """Read an XML file.

    Raises:
        ValueError: the file is no XML, or lacks something. The error names the file and the object.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path} is no XML: {error}.") from error
    if root.tag != "annotation":
        raise ValueError(f"{path} has <{root.tag}>, where Pascal VOC has <annotation>.")
    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        try:
            objects.append(_read_object(element))
        except ValueError as error:
            raise ValueError(f"{path}: object {number} {error}.") from None
    image_name = PureWindowsPath(_text(root, "filename")).name  # which also splits at "/"
    return VocAnnotation(path, image_name, _size(root), tuple(objects))


def counts_from_zero(annotations: Iterable[VocAnnotation]) -> bool:
    """Return whether boxes are plain coordinates, and not VOC's numbers of pixels, of which the first is 1.

    The numbers of pixels are whole numbers, but for a few in VOC's own files.
    """
    boxes = [voc_object.corners for annotation in annotations for voc_object in annotation.objects]
    fractions = sum(not all(x.is_integer() for x in box) for box in boxes)
    return any(min(box) < 1 for box in boxes) or 2 * fractions > len(boxes)


def _read_object(element: ElementTree.Element) -> VocObject:
    """
    Raises:
        ValueError: the object has no name, or no box; the error is the end of a sentence.
    """
    name, box = _text(element, "name"), element.find("bndbox")
    if not name:
        raise ValueError("has no <name>")
    if box is None:
        raise ValueError(f"({name}) has no <bndbox>")
    values = []
    for key in CORNERS:
        try:
            values.append(float(_text(box, key)))
        except ValueError:
            raise ValueError(f"({name}) has {_text(box, key)!r} for <{key}>, which is no number") from None
    if not all(map(math.isfinite, values)):
        raise ValueError(f"({name}) has a box that is not finite: {values}")
    (x0, x1), (y0, y1) = sorted(values[::2]), sorted(values[1::2])
    return VocObject(name, (x0, y0, x1, y1), _text(element, "difficult").lower() in ("1", "true"))


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(_text(root, f"size/{side}"))) for side in ("width", "height"))
    except (OverflowError, ValueError):
        return None
    return (width, height) if min(width, height) > 0 else None


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()

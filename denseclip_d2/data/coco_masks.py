"""Read masks of COCO files: polygons and run-length encodings (RLE), as labeling tools write them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

Mask = list[list[float]] | dict | None
"""COCO's ``segmentation``: polygons, an RLE, or nothing."""


def normalize_mask(segmentation: Any, height: int, width: int) -> tuple[Mask, str]:
    """Turn an annotation's ``segmentation`` into polygons or an RLE that pycocotools and Detectron2 read.

    Flat polygons, polygons of points and kwcoco's dictionaries of exterior and interiors become COCO's
    polygons. With interiors, they become an RLE. Invalid polygons are dropped.

    Args:
        height, width: of the image, in pixels.

    Returns: the mask, None if there is no valid one; and what is wrong with the dropped part, else "".
    """
    if _are_polygons(segmentation):  # all of COCO's own
        return segmentation, ""
    if not segmentation:
        return None, ""
    try:
        if isinstance(segmentation, list) and len(segmentation) == 1 and _is_rle(segmentation[0]):
            segmentation = segmentation[0]
        if _is_rle(segmentation):
            fault = _rle_fault(segmentation, height, width)
            return (None, fault) if fault else (segmentation, "")
        outlines = [*_outlines(segmentation)]
    except (TypeError, ValueError, KeyError, IndexError):
        return None, "the segmentation is neither polygons nor an RLE"
    faults = [fault for outline, _ in outlines if (fault := _polygon_fault(outline))]
    fault = faults[0] if faults else ""
    valid = [(outline, holes) for outline, holes in outlines if not _polygon_fault(outline)]
    if not valid:
        return None, fault or "the segmentation is empty"
    if any(holes for _, holes in valid):
        return _with_holes(valid, height, width), fault
    return [outline for outline, _ in valid], fault


def mask_area(mask: Mask, height: int, width: int) -> float:
    """Return the number of pixels that a mask covers."""
    return float(mask_util.area(encode(mask, height, width))) if mask else 0.0


def mask_box(mask: list | dict, height: int, width: int) -> list[float]:
    """Return the box around a mask: x, y, width and height in pixels."""
    if isinstance(mask, list):
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in mask])
        low, high = points.min(0), points.max(0)
        return [*low.tolist(), *(high - low).tolist()]
    return mask_util.toBbox(encode(mask, height, width)).tolist()


def encode(mask: list | dict, height: int, width: int) -> dict:
    """Return a mask as one compressed RLE."""
    if isinstance(mask, list):
        return mask_util.merge(mask_util.frPyObjects(mask, height, width))
    return mask_util.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask


def _are_polygons(segmentation: Any) -> bool:
    """Return whether this is a list of valid polygons; fast, because COCO has a million of them."""
    if type(segmentation) is not list or not segmentation:
        return False
    try:
        return all(type(polygon) is list and not _polygon_fault(polygon) for polygon in segmentation)
    except TypeError:  # the elements are not numbers
        return False


def _is_rle(segmentation: Any) -> bool:
    return isinstance(segmentation, dict) and "counts" in segmentation


def _rle_fault(rle: dict, height: int, width: int) -> str:
    """Return what is wrong with an RLE, else an empty string."""
    size, counts = [int(side) for side in rle["size"]], rle["counts"]
    if size == [width, height] != [height, width]:
        return f"the RLE has height and width exchanged: size {size}, the image is {height} x {width}"
    if size != [height, width]:
        return f"the RLE has size {size}, the image is {height} x {width} (height x width)"
    if isinstance(counts, list) and min(map(int, counts), default=0) < 0:
        return "the RLE has a run of negative length"
    pixels = sum(map(int, counts)) if isinstance(counts, list) else _pixels_of(counts)
    if pixels != height * width:
        return f"the runs of the RLE cover {pixels} pixels, the image has {height * width}"
    return ""


def _pixels_of(counts: str | bytes) -> int:
    """Return how many pixels a compressed RLE covers, without decoding it into memory.

    In pycocotools' format, a character has six bits. Five are digits, the least significant first. The sixth
    says that more characters follow. From the fourth on, a run is a difference from the run two before.
    """
    codes = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(int) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        raise ValueError("not a compressed RLE")
    ends = np.flatnonzero(~codes & 0x20)
    starts = np.r_[0, ends[:-1] + 1]
    digit = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 0x1F) << (5 * digit), starts)
    values -= np.where(codes[ends] & 0x10, 1 << (5 * (ends - starts + 1)), 0)
    runs = np.zeros(len(values), int)
    runs[:1] = values[:1]
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    if runs.min() < 0:
        raise ValueError("a run of negative length")
    return int(runs.sum())


def _outlines(segmentation: Any) -> Iterator[tuple[list[float], list[list[float]]]]:
    """Yield each polygon as a flat list of coordinates, with the polygons of its holes."""
    if isinstance(segmentation, dict):  # kwcoco's
        yield _flat(segmentation["exterior"]), [*map(_flat, segmentation.get("interiors") or ())]
    elif _is_number(segmentation[0]) or len(segmentation) >= 3 and all(map(_is_point, segmentation)):
        yield _flat(segmentation), []
    else:
        for part in segmentation:
            yield from _outlines(part) if isinstance(part, dict) else [(_flat(part), [])]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _is_point(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(map(_is_number, value))


def _flat(points: Sequence) -> list[float]:
    return [float(x) for point in points for x in ([point] if _is_number(point) else point)]


def _polygon_fault(polygon: list[float]) -> str:
    if len(polygon) % 2:
        return f"a polygon has {len(polygon)} numbers, which are not pairs of x and y"
    if len(polygon) < 6:
        return f"a polygon has {len(polygon) // 2} points, and needs three"
    return "" if math.isfinite(sum(polygon)) else "a polygon has a coordinate that is not finite"


def _with_holes(outlines: list[tuple[list[float], list[list[float]]]], height: int, width: int) -> dict:
    """Return polygons without their holes as an RLE, because COCO's polygons cannot have holes."""
    pixels = np.zeros((height, width), bool)
    for outline, holes in outlines:
        part = mask_util.decode(encode([outline], height, width)).astype(bool)
        valid = [hole for hole in holes if not _polygon_fault(hole)]
        if valid:
            part &= ~mask_util.decode(encode(valid, height, width)).astype(bool)
        pixels |= part
    rle = mask_util.encode(np.asfortranarray(pixels, np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}

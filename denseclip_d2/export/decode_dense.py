"""Decode the outputs of the heads of a RetinaNet or an FCOS in plain numpy, for files that end there.

    import onnxruntime
    from decode import decode

    session = onnxruntime.InferenceSession("model.onnx")
    names = [x.name for x in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, {"images": images})))
    found = decode(outputs, session.get_modelmeta().custom_metadata_map, images.shape[2:])

As in Detectron2: the best candidates of every level, non-maximum suppression by class, the best of the rest.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

HEADS = ("logits", "deltas", "anchors", "levels", "centerness")


def decode(
    outputs: Mapping[str, np.ndarray], about: Mapping[str, str], size: Sequence[int]
) -> dict[str, np.ndarray]:
    """
    Args:
        outputs: for N images and R anchors ``logits`` (N, R, K), ``deltas`` (N, R, 4), ``anchors`` (R, 4)
            x1, y1, x2, y2 in pixels, and ``levels`` (R,), integers: the level of each anchor; of an FCOS
            also ``centerness`` (N, R, 1), logits.
        about: the file's metadata, with ``decoding`` (JSON).
        size: height and width of the images, without padding at their lower and right sides.
    Returns: ``boxes`` (n, 4) x1, y1, x2, y2 in pixels, ``scores`` (n,) and ``classes`` (n,) int64, sorted by
        score within each image; ``images`` (n,) int64, the index of the image of each; and the other
        ``outputs``.
    """
    by = json.loads(about["decoding"])
    logits, deltas, anchors, levels = (outputs[name] for name in HEADS[:4])
    centerness = outputs.get("centerness", [None] * len(logits))
    predicted = zip(logits, centerness, deltas, strict=True)
    found = [_of_image(*own, anchors, levels, size, by) for own in predicted]
    boxes, scores, classes = (np.concatenate(x) for x in zip(*found, strict=True))
    images = np.repeat(np.arange(len(found)), [len(own) for own, _, _ in found])
    rest = {name: x for name, x in outputs.items() if name not in HEADS}
    return {"boxes": boxes, "scores": scores, "classes": classes, "images": images, **rest}


def _of_image(
    logits: np.ndarray,
    centerness: np.ndarray | None,
    deltas: np.ndarray,
    anchors: np.ndarray,
    levels: np.ndarray,
    size: Sequence[int],
    by: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes, scores and classes of one image."""
    probabilities = _sigmoid(logits)
    if centerness is not None:
        probabilities = np.sqrt(probabilities * _sigmoid(centerness))
    rows, classes = (probabilities > by["lowest_score"]).nonzero()
    scores = probabilities[rows, classes]
    order = np.argsort(-scores, kind="stable")
    level = levels[rows[order]]
    best = np.concatenate([order[level == x][: by["candidates"]] for x in np.unique(levels)])
    best = best[np.argsort(-scores[best], kind="stable")]
    rows, classes, scores = rows[best], classes[best], scores[best]
    boxes, limits = _moved(anchors[rows], deltas[rows], by), np.array([*size[::-1]] * 2, np.float32)
    if by["clipped_first"]:
        boxes = boxes.clip(0, limits)
    kept = _suppress(boxes, classes, by["overlap"], by["detections"])
    boxes = boxes[kept].clip(0, limits)
    filled = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return boxes[filled], scores[kept][filled], classes[kept][filled]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # the limit, 0, is right
        return 1 / (1 + np.exp(-logits))


def _moved(anchors: np.ndarray, deltas: np.ndarray, by: dict[str, Any]) -> np.ndarray:
    """Return anchors moved by deltas, both (n, 4)."""
    sides = anchors[:, 2:] - anchors[:, :2]
    centers = anchors[:, :2] + 0.5 * sides
    if by["box_weights"] is None:  # of FCOS: distances from the center, in sides of the anchor
        near, far = np.split(deltas.clip(min=0) * np.tile(sides, 2), 2, axis=1)
        return np.concatenate([centers - near, centers + far], axis=1)
    deltas = deltas / np.array(by["box_weights"], np.float32)
    centers = deltas[:, :2] * sides + centers
    sides = np.exp(deltas[:, 2:].clip(max=by["largest_scaling"])) * sides
    return np.concatenate([centers - 0.5 * sides, centers + 0.5 * sides], axis=1)


def _suppress(boxes: np.ndarray, classes: np.ndarray, overlap: float, most: int) -> list[int]:
    """Return which boxes stay, at most ``most``: non-maximum suppression of boxes sorted by score."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    kept: list[int] = []
    left = np.arange(len(boxes))
    while len(left) and len(kept) < most:
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = (f(boxes[best], boxes[left]) for f in (np.maximum, np.minimum))
        common = (high[:, 2:] - low[:, :2]).clip(min=0).prod(axis=1)
        same = classes[left] == classes[best]
        left = left[~(same & (common > overlap * (areas[best] + areas[left] - common)))]
    return kept

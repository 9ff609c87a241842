"""Decode the outputs of the heads of a RetinaNet or an FCOS in plain torch, for files that end there.

    import torch
    from decode import decode

    about = {"decoding": ""}  # load() fills the value
    model = torch.export.load("model.pt2", extra_files=about).module(check_guards=False)
    with torch.no_grad():
        found = decode(model(images), about, images.shape[2:])

As in Detectron2: the best candidates of every level, non-maximum suppression by class, the best of the rest.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

HEADS = ("logits", "deltas", "anchors", "levels", "centerness")


def decode(outputs: Mapping[str, Tensor], about: Mapping[str, str], size: Sequence[int]) -> dict[str, Tensor]:
    """
    Args:
        outputs: for N images and R anchors ``logits`` (N, R, K), ``deltas`` (N, R, 4), ``anchors`` (R, 4)
            x1, y1, x2, y2 in pixels, and ``levels`` (R,) int64, ascending: the level of each anchor; of an
            FCOS also ``centerness`` (N, R, 1), logits.
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
    boxes, scores, classes = (torch.cat(x) for x in zip(*found, strict=True))
    images = torch.cat([torch.full_like(own, i) for i, (_, _, own) in enumerate(found)])
    rest = {name: x for name, x in outputs.items() if name not in HEADS}
    return {"boxes": boxes, "scores": scores, "classes": classes, "images": images, **rest}


def _of_image(
    logits: Tensor,
    centerness: Tensor | None,
    deltas: Tensor,
    anchors: Tensor,
    levels: Tensor,
    size: Sequence[int],
    by: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes, scores and classes of one image."""
    lengths = levels.bincount().tolist()
    probabilities = [x.sigmoid() for x in logits.split(lengths)]
    if centerness is not None:
        centers = centerness.sigmoid().split(lengths)
        probabilities = [(x * y).sqrt() for x, y in zip(probabilities, centers, strict=True)]
    levelled = zip(probabilities, deltas.split(lengths), anchors.split(lengths), strict=True)
    candidates = [_candidates(*level, by) for level in levelled]
    boxes, scores, classes = (torch.cat(x) for x in zip(*candidates, strict=True))
    if by["clipped_first"]:
        boxes = clip_boxes_to_image(boxes, size)
    kept = batched_nms(boxes, scores, classes, by["overlap"])[: by["detections"]]
    boxes = clip_boxes_to_image(boxes[kept], size)
    filled = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return boxes[filled], scores[kept][filled], classes[kept][filled]


def _candidates(
    scores: Tensor, deltas: Tensor, anchors: Tensor, by: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes, scores and classes of the best candidates of one level."""
    rows, classes = (scores > by["lowest_score"]).nonzero(as_tuple=True)
    scores = scores[rows, classes]
    scores, best = scores.topk(min(len(scores), by["candidates"]))
    rows, classes = rows[best], classes[best]
    return _moved(anchors[rows], deltas[rows], by), scores, classes


def _moved(anchors: Tensor, deltas: Tensor, by: dict[str, Any]) -> Tensor:
    """Return anchors moved by deltas, both (n, 4)."""
    sides = anchors[:, 2:] - anchors[:, :2]
    centers = anchors[:, :2] + 0.5 * sides
    if by["box_weights"] is None:  # of FCOS: distances from the center, in sides of the anchor
        near, far = (deltas.relu() * sides.repeat(1, 2)).split(2, dim=1)
        return torch.cat([centers - near, centers + far], dim=1)
    deltas = deltas / deltas.new_tensor(by["box_weights"])
    centers = deltas[:, :2] * sides + centers
    sides = deltas[:, 2:].clamp(max=by["largest_scaling"]).exp() * sides
    return torch.cat([centers - 0.5 * sides, centers + 0.5 * sides], dim=1)

"""Detectron2's selection of detections without branches, in nodes that every ONNX runtime has."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from detectron2.modeling.meta_arch import FCOS, RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.ops import boxes as box_ops

from .resize import divided

UNLIMITED = 2**31 - 1
"""A number of boxes; OpenVINO makes int32 of int64."""


@contextmanager
def without_branches() -> Iterator[None]:
    """Let a model be traced without branches and without tensors that some runtimes refuse.

    Torchvision's non-maximum suppression has a branch for zero boxes. The levels of a dense detector have
    numbers of candidates that depend on values, and may be empty.
    """
    with (
        _PlainAttention(),
        patch.object(RetinaNet, "inference_single_image", _detections),
        patch.object(FCOS, "inference_single_image", _detections),
        patch.object(DenseDetector, "_decode_multi_level_predictions", _candidates),
        patch.object(proposal_utils, "batched_nms", _nms_by_rank),
        patch.object(box_ops, "batched_nms", _batched_nms),
    ):
        yield


def _detections(
    self: Any, anchors: list[Boxes], scores: list[Tensor], deltas: list[Tensor], size: tuple
) -> Instances:
    """Return the detections of an image; arguments as for ``RetinaNet.inference_single_image``."""
    found = self._decode_multi_level_predictions(
        anchors, scores, deltas, self.test_score_thresh, self.test_topk_candidates, size
    )
    boxes = _apart(found.pred_boxes.tensor, found.pred_classes)
    limits = self.test_nms_thresh, self.test_score_thresh, self.max_detections_per_image
    return found[_Suppression.apply(boxes, found.scores, *limits)]


def _candidates(
    self: Any,
    anchors: list[Boxes],
    scores: list[Tensor],
    deltas: list[Tensor],
    lowest: float,
    most: int,
    size: tuple,
) -> Instances:
    """Return the best of every level, by ``DenseDetector._decode_multi_level_predictions``."""
    found, start = [], 0
    for own in scores:
        number: Any = torch.minimum(torch.as_tensor(own.shape[0] * self.num_classes), torch.tensor(most))
        best, indices = own.flatten().topk(number)
        found.append((best, indices + start))
        start = start + own.shape[0] * self.num_classes
    best, indices = map(torch.cat, zip(*found, strict=True))
    # The first stays, for some runtimes refuse tensors without elements; the suppression drops a low score.
    likely = ((best > lowest) | (torch.arange(best.shape[0]) == 0)).nonzero().squeeze(1)
    best, indices = best[likely], indices[likely]
    rows = divided(indices, self.num_classes)
    boxes = self.box2box_transform.apply_deltas(torch.cat(deltas)[rows], Boxes.cat(anchors).tensor[rows])
    return Instances(
        size, pred_boxes=Boxes(boxes), scores=best, pred_classes=indices - rows * self.num_classes
    )


def _batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Return what torchvision's ``batched_nms`` returns for scores above 0."""
    return _Suppression.apply(_apart(boxes, idxs), scores, iou_threshold, 0.0, UNLIMITED)


def _nms_by_rank(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Return the same for any scores."""
    order = scores.argsort(descending=True)
    ranks = torch.arange(boxes.shape[0], 0, -1).float()
    return order[_batched_nms(boxes[order], ranks, idxs[order], iou_threshold)]


def _apart(boxes: Tensor, groups: Tensor) -> Tensor:
    """Return boxes with an offset for each group, so that boxes of two groups do not overlap."""
    ends = torch.cat([boxes.flatten(), boxes.new_zeros(1)])  # there may be no box
    return boxes + (groups * (ends.max() - ends.min() + 1))[:, None]


class _PlainAttention(TorchFunctionMode):
    """Attention that scales the queries alone.

    Torch's exporter scales keys too. OpenCV 5.0 fuses such attention, and then misses biases of projections.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _attention(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any
) -> Tensor:
    scores = (query * int(query.shape[-1]) ** -0.5) @ key.transpose(-2, -1)
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if masked else scores + attn_mask
    return scores.softmax(dim=-1) @ value


class _Suppression(torch.autograd.Function):
    """Non-maximum suppression as a node of ONNX with a lowest score and a number of boxes."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, overlap: float, lowest: float, most: int) -> Tensor:
        kept = box_ops.nms(boxes, scores, overlap)
        return kept[scores[kept] > lowest][:most]

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, overlap: float, lowest: float, most: int) -> Any:
        def constant(x: Any) -> Any:
            return g.op("Constant", value_t=torch.tensor(x))

        boxes, scores = g.op("Unsqueeze", boxes, constant([0])), g.op("Unsqueeze", scores, constant([0, 1]))
        limits = constant([most]), constant([overlap]), constant([lowest])
        found = g.op("NonMaxSuppression", boxes, scores, *limits)  # rows of image, class and box
        kept = g.op("Gather", found, constant(2), axis_i=1)
        kept.setType(scores.type().with_sizes([None]).with_dtype(torch.int64))
        return kept

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Boxes, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from detectron2.utils import comm
from torch import Tensor

from ..kernels import dense_target, label_map_cross_entropy, pixel_text_bce
from ..utils.distributed import sum_over_processes

TARGET_STRIDE = 4
"""Side of a cell of the target, in pixels (released behavior)."""

UNCOVERED = -1
"""The label of pixels without an object."""

Regions = Sequence[Boxes | PolygonMasks | BitMasks]
"""B sets of M boxes or masks, in pixels of the padded image. All are boxes, or all are masks."""


def region_targets(
    regions: Regions, classes: Sequence[Tensor], num_classes: int, size: tuple[int, int]
) -> Tensor:
    """Return which pixels the regions of each class cover, on the regions' device.

    As released, box / 4, truncated to integers and clamped to [0, size - 1], covers `[y1:y2, x1:x2]`. The
    last row and column stay empty, and a box thinner than a cell covers nothing. The released code has no
    masks.

    Args:
        classes: B tensors (M,) of class ids.
        num_classes: K.
        size: (H, W), height and width of the padded image over 4.
    Returns: (B, K, H, W) bool.
    """
    return dense_target(*_covering(regions, classes, size), len(regions), num_classes, size)


def _covering(
    regions: Regions, classes: Sequence[Tensor], size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cells of every object of the batch, and the image and the class of each: (N,)."""
    image, label = torch.cat([torch.full_like(c, i) for i, c in enumerate(classes)]), torch.cat(list(classes))
    if isinstance(regions[0], Boxes):
        return _cells([boxes.tensor for boxes in regions], size), image, label
    # Polygons are drawn on the CPU; the copy to a GPU does not wait for the GPU.
    masks = [_shrunk_masks(m, size).to(label.device, non_blocking=True) for m in regions]
    return torch.cat(masks), image, label


def _cells(boxes: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Return the cells `[y1:y2, x1:x2]` of the target that boxes cover: (N, 4) int64."""
    height, width = size
    x1, y1, x2, y2 = torch.cat(list(boxes)).div(TARGET_STRIDE).long().unbind(1)
    x1, x2 = x1.clamp(0, width - 1), x2.clamp(0, width - 1)
    y1, y2 = y1.clamp(0, height - 1), y2.clamp(0, height - 1)
    return torch.stack([x1, y1, x2, y2], dim=1)


def _shrunk_masks(masks: PolygonMasks | BitMasks, size: tuple[int, int]) -> Tensor:
    """Return masks at the target's resolution: (M, H, W) bool."""
    if isinstance(masks, BitMasks):
        offset = TARGET_STRIDE // 2  # a cell has the value of its middle
        cells = masks.tensor[:, offset::TARGET_STRIDE, offset::TARGET_STRIDE]
        return F.pad(cells, (0, size[1] - cells.shape[2], 0, size[0] - cells.shape[1]))
    cells = [polygons_to_bitmask([p / TARGET_STRIDE for p in polygons], *size) for polygons in masks.polygons]
    return torch.from_numpy(np.array(cells, dtype=bool).reshape(-1, *size))


def pixel_text_loss(
    scores: Tensor, shapes: Regions, classes: Sequence[Tensor], stride: int, tau: float = 1.0,
    kernels: bool = True,
) -> Tensor:  # fmt: skip
    """Return the auxiliary pixel-text loss of detection (paper, sec. 3.4, as released).

    The loss is the binary cross-entropy over all classes at the pixels that any class covers. Other pixels
    are ignored. It is computed in float32. The pixels are counted over all processes, so that the mean over
    processes is the loss of the global batch.

    Args:
        scores: (B, K, h, w), the score map; over ``tau``, it is enlarged to stride 4.
        shapes: see :func:`region_targets` for the pixels that they cover.
        classes: B tensors (M,) of class ids.
        stride: the score map's, a multiple of 4.
        tau: temperature.
        kernels: compute covered blocks alone: the same numbers in less memory and time
            (:func:`~denseclip_d2.kernels.pixel_text_bce`).
    Returns: scalar; 0 if no pixel is covered.
    """
    covering, image, label = _covering(shapes, classes, _target_size(scores, stride))
    factor = stride // TARGET_STRIDE
    total, count = pixel_text_bce(scores, covering, image, label, factor, tau, kernels)
    return _mean_over_processes(total, count)


def pixel_text_softmax_loss(
    scores: Tensor, shapes: Regions, classes: Sequence[Tensor], stride: int, tau: float = 1.0,
    kernels: bool = True,
) -> Tensor:  # fmt: skip
    """Return the pixel-text loss of detection as a cross-entropy between the classes, for many classes.

    The binary loss is a mean over K classes, of which K - 1 are absent. With 192 classes it takes every
    score below zero, also that of the right class; a cross-entropy does not (docs/evidence.md). A pixel has
    the class of the smallest object that covers it. Other pixels are ignored.

    Args, Returns: see :func:`pixel_text_loss`.
    """
    size = _target_size(scores, stride)
    covering, _, _ = _covering(shapes, classes, size)
    objects = covering.split([len(own) for own in classes])
    labels = torch.stack([_class_of_smallest(*own, size) for own in zip(objects, classes, strict=True)])
    (total,) = label_map_cross_entropy(scores.float() / tau, labels, UNCOVERED, kernels)
    return _mean_over_processes(total, (labels != UNCOVERED).sum())


def _target_size(scores: Tensor, stride: int) -> tuple[int, int]:
    factor = stride // TARGET_STRIDE
    return factor * scores.shape[2], factor * scores.shape[3]


def _class_of_smallest(covering: Tensor, label: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (H, W) class ids of one image, from boxes (M, 4) or masks (M, H, W)."""
    if not len(label):
        return torch.full(size, UNCOVERED, device=label.device)
    if covering.dim() == 2:
        x1, y1, x2, y2 = covering.t()[..., None, None]
        y, x = (torch.arange(side, device=label.device) for side in size)
        covering = (y[:, None] >= y1) & (y[:, None] < y2) & (x >= x1) & (x < x2)
    area = covering.flatten(1).sum(1)[:, None, None].expand_as(covering)
    smallest = area.where(covering, covering[0].numel() + 1).argmin(dim=0)
    return label[smallest].where(covering.any(dim=0), UNCOVERED)


def _mean_over_processes(total: Tensor, count: Tensor) -> Tensor:
    return total / (sum_over_processes(count).clamp(min=1) / comm.get_world_size())


def label_map_loss(logits: Tensor, labels: Tensor, ignore_value: int, kernels: bool = True) -> Tensor:
    """Return the cross-entropy with a label map, summed over labeled pixels and divided by *all* pixels.

    This is the released behavior. The loss is computed in float32; it is 0 if every pixel is ignored.

    Args:
        logits: (B, K, h, w), enlarged to the label map's size.
        labels: (B, H, W) class ids.
        ignore_value: the id of no class.
        kernels: False for the plain definition.
    Returns: scalar.
    """
    (total,) = label_map_cross_entropy(logits, labels, ignore_value, kernels)
    return total / labels.numel()

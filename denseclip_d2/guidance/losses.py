from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from detectron2.utils import comm
from torch import Tensor

from ..distributed import sum_over_processes

TARGET_STRIDE = 4
"""Pixels a side of one cell of the target (released behaviour)."""


def box_targets(
    boxes: Sequence[Tensor], classes: Sequence[Tensor], num_classes: int, size: tuple[int, int]
) -> Tensor:
    """Which classes' boxes cover which pixels; on the boxes' device, without a loop over boxes.

    As released: box / 4, truncated to integers and clamped to [0, size - 1], covers `[y1:y2, x1:x2]`, so that
    the last row and column stay empty and a box thinner than a cell covers nothing.

    Args:
        boxes: B tensors (M, 4) of x1, y1, x2, y2 in pixels of the padded image.
        classes: B tensors (M,) of class ids.
        num_classes: K.
        size: (H, W), height and width of the padded image over 4.
    Returns: (B, K, H, W) bool.
    """
    height, width = size
    image = torch.cat([torch.full_like(c, i) for i, c in enumerate(classes)])
    label = torch.cat(list(classes))
    cells = torch.cat(list(boxes)).div(TARGET_STRIDE).long().clamp(min=0)
    x1, x2 = cells[:, 0::2].clamp(max=width - 1).unbind(1)
    y1, y2 = cells[:, 1::2].clamp(max=height - 1).unbind(1)
    # A box is the double running sum of a sign at each of its corners.
    corners = torch.zeros(len(boxes), num_classes, height, width, dtype=torch.int32, device=image.device)
    for y, x, sign in ((y1, x1, 1), (y2, x2, 1), (y1, x2, -1), (y2, x1, -1)):
        corners.index_put_((image, label, y, x), corners.new_tensor(sign), accumulate=True)
    return corners.cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32) > 0


def mask_targets(
    masks: Sequence[PolygonMasks | BitMasks],
    classes: Sequence[Tensor],
    num_classes: int,
    size: tuple[int, int],
) -> Tensor:
    """Which classes' masks cover which pixels, for a batch; on the classes' device.

    The released code knows boxes alone; masks are the tighter target where there are any.

    Args:
        masks: B sets of M masks, in pixels of the image.
        classes, num_classes, size: see :func:`box_targets`.
    Returns: (B, K, H, W) bool.
    """
    targets = []
    for image_masks, image_classes in zip(masks, classes, strict=True):
        cells = _shrunk(image_masks, size).to(image_classes.device)
        covered = cells.new_zeros(num_classes, *size, dtype=torch.int32)
        targets.append(covered.index_add_(0, image_classes, cells.int()) > 0)
    return torch.stack(targets)


def _shrunk(masks: PolygonMasks | BitMasks, size: tuple[int, int]) -> Tensor:
    """Masks at the target's resolution: (M, H, W) bool."""
    if isinstance(masks, BitMasks):
        offset = TARGET_STRIDE // 2  # the middle of a cell stands for it
        cells = masks.tensor[:, offset::TARGET_STRIDE, offset::TARGET_STRIDE]
        return F.pad(cells, (0, size[1] - cells.shape[2], 0, size[0] - cells.shape[1]))
    cells = [polygons_to_bitmask([p / TARGET_STRIDE for p in polygons], *size) for polygons in masks.polygons]
    return torch.from_numpy(np.array(cells, dtype=bool).reshape(-1, *size))


def pixel_text_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The auxiliary pixel-text loss of detection (paper, sec. 3.4, as released).

    Binary cross-entropy over all classes at the pixels that any class covers; the others are ignored. In
    float32 whatever the precision of ``logits``. The pixels are counted over all processes, so that the loss,
    averaged over processes, is that of the global batch.

    Args:
        logits: (B, K, h, w), the score map over tau; enlarged to the target's size.
        target: (B, K, H, W) bool, see :func:`box_targets`.
    Returns: scalar; 0 where no pixel is covered.
    """
    logits = F.interpolate(logits.float(), target.shape[2:], mode="bilinear", align_corners=False)
    mask = target.any(dim=1, keepdim=True)  # (B, 1, H, W)
    loss = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    count = sum_over_processes(mask.sum() * logits.shape[1]).clamp(min=1) / comm.get_world_size()
    return (loss * mask).sum() / count

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

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


def pixel_text_loss(
    logits: Tensor, boxes: Sequence[Tensor], classes: Sequence[Tensor], stride: int
) -> Tensor:
    """The auxiliary pixel-text loss of detection, from boxes (paper, sec. 3.4, as released).

    Binary cross-entropy over all classes at the pixels that any box covers; pixels outside every box are
    ignored. In float32 whatever the precision of ``logits``.

    Args:
        logits: (B, K, h, w), the score map over tau.
        boxes, classes: see :func:`box_targets`.
        stride: pixels a side of one cell of the score map, a multiple of 4.
    Returns: scalar; 0 where no box covers a pixel.
    """
    logits = F.interpolate(
        logits.float(), scale_factor=stride // TARGET_STRIDE, mode="bilinear", align_corners=False
    )
    target = box_targets(boxes, classes, logits.shape[1], logits.shape[2:])
    mask = target.any(dim=1, keepdim=True)  # (B, 1, H, W)
    loss = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    return (loss * mask).sum() / (mask.sum() * logits.shape[1]).clamp(min=1)

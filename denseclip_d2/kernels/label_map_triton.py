import torch
import triton
import triton.language as tl
from torch import Tensor

from .blocks_triton import (
    corner_gradients,
    corners_of_block,
    enlarged,
    gradient_of_cells,
    pixels_of_block,
    store_corners,
    with_classes_together,
)

TILE, WARPS = 1024, 1
"""Pixels times classes that a program holds at a time, and its warps. The fastest on an H200."""


@triton.jit
def _cross_entropy_in_block(
    logits, labels, sums, corners,
    num_classes, height, width, stride_b, stride_k, stride_y, stride_x, ignore_value,
    FACTOR: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Compute a block, some classes at a time: the softmax's denominators first, then the gradients."""
    image, row, column, y, x, real = pixels_of_block(height, width, FACTOR, PIXELS)
    label = tl.load(labels + (image * height * FACTOR + y) * (width * FACTOR) + x, mask=real, other=0)
    labeled = real & (label != ignore_value)
    if tl.sum(labeled.to(tl.int32), 0) > 0:  # else sums and gradients stay zero
        places, weights = corners_of_block(row, column, height, width, stride_y, stride_x, FACTOR, PIXELS)
        cells = logits + image * stride_b
        greatest = tl.full((PIXELS,), float("-inf"), tl.float32)
        total = tl.zeros((PIXELS,), tl.float32)
        own = tl.zeros((PIXELS,), tl.float32)
        for start in range(0, num_classes, CLASSES):
            k = start + tl.arange(0, CLASSES)
            known = k < num_classes
            value = enlarged(cells + k.to(tl.int64) * stride_k, places, weights, known)
            own += tl.sum(tl.where(k[None, :] == label[:, None], value, 0.0), 1)
            value = tl.where(known[None, :], value, float("-inf"))
            larger = tl.maximum(greatest, tl.max(value, 1))
            total = total * tl.exp(greatest - larger) + tl.sum(tl.exp(value - larger[:, None]), 1)
            greatest = larger
        log_total = greatest + tl.log(total)
        tl.store(sums + tl.program_id(0), tl.sum(tl.where(labeled, log_total - own, 0.0), 0))
        for start in range(0, num_classes, CLASSES):
            k = start + tl.arange(0, CLASSES)
            value = enlarged(cells + k.to(tl.int64) * stride_k, places, weights, k < num_classes)
            grad = tl.exp(value - log_total[:, None]) - (k[None, :] == label[:, None]).to(tl.float32)
            store_corners(corners, tl.where(labeled[:, None], grad, 0.0), weights, k, num_classes)


def label_map_cross_entropy_triton(
    logits: Tensor, labels: Tensor, ignore_value: int
) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy with a label map and its gradient by one kernel over blocks of pixels.

    Args:
        labels: of the size of ``logits`` enlarged by an integer.
        logits, ignore_value, Returns: see :func:`~denseclip_d2.kernels.label_map.label_map_cross_entropy_op`.
    """
    _, num_classes, height, width = logits.shape
    factor = labels.shape[1] // height
    logits = with_classes_together(logits)
    pixels = triton.next_power_of_2(factor**2)
    corners = corner_gradients(logits)
    sums = torch.zeros(corners.shape[:3].numel(), device=logits.device)
    with torch.cuda.device_of(logits):
        _cross_entropy_in_block[sums.shape](
            logits,
            labels.contiguous(),
            sums,
            corners,
            num_classes,
            height,
            width,
            *logits.stride(),
            ignore_value,
            FACTOR=factor,
            PIXELS=pixels,
            CLASSES=min(max(1, TILE // pixels), triton.next_power_of_2(num_classes)),
            num_warps=WARPS,
        )
    return sums.sum(dtype=torch.float64).float(), gradient_of_cells(corners)

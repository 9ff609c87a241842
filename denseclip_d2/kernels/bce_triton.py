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

BLOCK_CLASSES = 16
"""The fastest of 16 to 128 on an H200 (docs/lab_book.md)."""


@triton.jit
def _bce_in_block(
    scores, shapes, first, label, sums, counts, corners,
    num_classes, height, width, stride_b, stride_k, stride_y, stride_x, scale,
    FACTOR: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr, MASKS: tl.constexpr,
):  # fmt: skip
    """Compute some classes of a block."""
    image, row, column, y, x, real = pixels_of_block(height, width, FACTOR, PIXELS)
    k = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)
    begin, end = tl.load(first + image), tl.load(first + image + 1)
    covered, target = _target(
        shapes, label, begin, end, row, column, y, x, real, k, height * FACTOR, width * FACTOR,
        FACTOR, PIXELS, CLASSES, MASKS,
    )  # fmt: skip
    count = tl.sum(covered, 0)
    if tl.program_id(1) == 0:
        tl.store(counts + tl.program_id(0), count)

    if count > 0:  # else sums and gradients stay zero
        known = k < num_classes
        places, weights = corners_of_block(row, column, height, width, stride_y, stride_x, FACTOR, PIXELS)
        cells = scores + image * stride_b + k.to(tl.int64) * stride_k
        # BCE(x, t) = softplus(-x) where t = 1, else softplus(x).
        sign = 1.0 - 2.0 * target.to(tl.float32)
        logits = enlarged(cells, places, weights, known) * scale * sign
        small = tl.exp(-tl.abs(logits))
        larger = 1.0 + small
        log1p = tl.log(larger) + (small - (larger - 1.0)) / larger  # adds what rounding removed from `larger`
        counted = (covered[:, None] > 0) & known[None, :]
        loss = tl.where(counted, tl.maximum(logits, 0.0) + log1p, 0.0)
        place = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tl.store(sums + place, tl.sum(tl.sum(loss, 1), 0))
        sigmoid = tl.where(logits >= 0, 1.0, small) / larger
        store_corners(corners, tl.where(counted, sigmoid * sign * scale, 0.0), weights, k, num_classes)


@triton.jit
def _target(
    shapes, label, begin, end, row, column, y, x, real, k, height, width,
    FACTOR: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr, MASKS: tl.constexpr,
):  # fmt: skip
    """Return which pixels an image's shapes cover, (PIXELS,), and with which classes, (PIXELS, CLASSES)."""
    top, left = (row - 1) * FACTOR + FACTOR // 2, (column - 1) * FACTOR + FACTOR // 2
    covered = tl.zeros((PIXELS,), tl.int32)
    target = tl.zeros((PIXELS, CLASSES), tl.int32)
    for n in range(begin, end):
        if MASKS:
            inside = real & (tl.load(shapes + (n * height + y) * width + x, mask=real, other=0) != 0)
            covered, target = _with(inside, tl.load(label + n), k, covered, target)
        else:
            x1, y1 = tl.load(shapes + 4 * n), tl.load(shapes + 4 * n + 1)
            x2, y2 = tl.load(shapes + 4 * n + 2), tl.load(shapes + 4 * n + 3)
            # Most boxes do not touch this block.
            if (y1 < top + FACTOR) & (y2 > top) & (x1 < left + FACTOR) & (x2 > left):
                inside = real & (y >= y1) & (y < y2) & (x >= x1) & (x < x2)
                covered, target = _with(inside, tl.load(label + n), k, covered, target)
    return covered, target


@triton.jit
def _with(inside, label, k, covered, target):
    """Return ``covered`` and ``target`` with one more shape."""
    inside = inside.to(tl.int32)
    return covered | inside, target | (inside[:, None] * (label == k).to(tl.int32)[None, :])


def pixel_text_bce_triton(
    scores: Tensor, shapes: Tensor, image: Tensor, label: Tensor, factor: int, tau: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the masked binary cross-entropy and its gradient by one kernel over blocks of pixels.

    Args, Returns: see :func:`~denseclip_d2.kernels.bce.pixel_text_bce_op`.
    """
    batch, num_classes, height, width = scores.shape
    scores = with_classes_together(scores)
    # The first shape of each image. The host does not read it, and does not wait for the GPU.
    first = torch.searchsorted(image, torch.arange(batch + 1, device=image.device), out_int32=True)
    corners = corner_gradients(scores)
    classes = min(BLOCK_CLASSES, triton.next_power_of_2(num_classes))
    grid = (corners.shape[:3].numel(), triton.cdiv(num_classes, classes))
    sums = torch.zeros(grid, device=scores.device)
    counts = torch.empty(grid[0], dtype=torch.int32, device=scores.device)
    masks = shapes.dim() == 3
    with torch.cuda.device_of(scores):
        _bce_in_block[grid](
            scores,
            shapes.contiguous().view(torch.uint8) if masks else shapes.contiguous(),
            first,
            label.contiguous(),
            sums,
            counts,
            corners,
            num_classes,
            height,
            width,
            *scores.stride(),
            1 / tau,
            FACTOR=factor,
            PIXELS=triton.next_power_of_2(factor**2),
            CLASSES=classes,
            MASKS=masks,
        )
    return sums.sum(), counts.sum() * num_classes, gradient_of_cells(corners)

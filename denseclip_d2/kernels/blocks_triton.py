"""Blocks of an enlarged map. A block has the FACTOR x FACTOR pixels between four cells, or beyond a border.

An image of h x w cells has (h + 1) x (w + 1) blocks. A program computes one block, and writes the gradients
of its four cells. Each cell then sums the gradients of the four blocks around it. There are no atomic
operations, so that every call gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def with_classes_together(cells: Tensor) -> Tensor:
    """Return the map with each cell's classes side by side in memory, the order in which programs read."""
    return cells.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def corner_gradients(cells: Tensor) -> Tensor:
    """Return zeros for the blocks' gradients of (B, K, h, w) cells: (B, h + 1, w + 1, 4, K) float32."""
    batch, num_classes, height, width = cells.shape
    return torch.zeros(batch, height + 1, width + 1, 4, num_classes, device=cells.device)


def gradient_of_cells(corners: Tensor) -> Tensor:
    """Sum :func:`corner_gradients` by cell: (B, K, h, w)."""
    above_before, above_after, below_before, below_after = corners.unbind(3)
    grad = above_before[:, 1:, 1:] + above_after[:, 1:, :-1] + below_before[:, :-1, 1:]
    return (grad + below_after[:, :-1, :-1]).permute(0, 3, 1, 2).contiguous()


@triton.jit
def pixels_of_block(height, width, FACTOR: tl.constexpr, PIXELS: tl.constexpr):
    """Return this program's image, row, column, its pixels' y and x, and which pixels are in the map."""
    block = tl.program_id(0).to(tl.int64)
    row, column = block // (width + 1) % (height + 1), block % (width + 1)
    image = block // ((height + 1) * (width + 1))
    pixel = tl.arange(0, PIXELS)
    y = (row - 1) * FACTOR + FACTOR // 2 + pixel // FACTOR
    x = (column - 1) * FACTOR + FACTOR // 2 + pixel % FACTOR
    real = (pixel < FACTOR * FACTOR) & (y >= 0) & (y < height * FACTOR) & (x >= 0) & (x < width * FACTOR)
    return image, row, column, y, x, real


@triton.jit
def corners_of_block(
    row, column, height, width, stride_y, stride_x, FACTOR: tl.constexpr, PIXELS: tl.constexpr
):  # fmt: skip
    """Return the offsets of the four cells, and their weights for each pixel.

    Beyond a border there is one cell to read. The other gets no weight, and no gradient.
    """
    pixel = tl.arange(0, PIXELS)
    down, right = _weight(pixel // FACTOR, FACTOR), _weight(pixel % FACTOR, FACTOR)
    down = tl.where(row == 0, 1.0, tl.where(row == height, 0.0, down))[:, None]
    right = tl.where(column == 0, 1.0, tl.where(column == width, 0.0, right))[:, None]
    above, below = tl.maximum(row - 1, 0) * stride_y, tl.minimum(row, height - 1) * stride_y
    before, after = tl.maximum(column - 1, 0) * stride_x, tl.minimum(column, width - 1) * stride_x
    places = (above + before, above + after, below + before, below + after)
    weights = ((1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right)
    return places, weights


@triton.jit
def _weight(pixel, FACTOR: tl.constexpr):
    """Return the distance of a block's pixel from the first of its two cells, in cells."""
    return (pixel.to(tl.float32) + FACTOR // 2 + 0.5) / FACTOR - 0.5


@triton.jit
def enlarged(cells, places, weights, known):
    """Return the values at a block's pixels: (PIXELS, CLASSES) float32.

    Args:
        cells: (CLASSES,) pointers to the classes in the map's first cell.
        known: which of the classes exist. The values of others are 0.
    """
    value = weights[0] * _load(cells + places[0], known)
    value += weights[1] * _load(cells + places[1], known)
    value += weights[2] * _load(cells + places[2], known)
    value += weights[3] * _load(cells + places[3], known)
    return value


@triton.jit
def _load(pointer, known):
    return tl.load(pointer, mask=known, other=0.0).to(tl.float32)[None, :]


@triton.jit
def store_corners(corners, grad, weights, k, num_classes):
    """Write the gradients of this block's cells, from those of its (PIXELS, CLASSES), for classes ``k``."""
    place = corners + tl.program_id(0).to(tl.int64) * 4 * num_classes + k
    known = k < num_classes
    tl.store(place, tl.sum(weights[0] * grad, 0), mask=known)
    tl.store(place + num_classes, tl.sum(weights[1] * grad, 0), mask=known)
    tl.store(place + 2 * num_classes, tl.sum(weights[2] * grad, 0), mask=known)
    tl.store(place + 3 * num_classes, tl.sum(weights[3] * grad, 0), mask=known)

"""Bilinear enlargement of a map, one tile at a time: what a kernel allocates has a tile's size."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 19
"""Numbers in the largest tensor of a tile: 2 MB, which the caches of processors hold."""


def tile_side(num_classes: int) -> int:
    """Return the width and height, in pixels, of a tile with ``num_classes`` numbers a pixel."""
    return max(1, math.isqrt(CHUNK // num_classes))


def enlarging(length: int, size: int) -> Tensor:
    """Return the (size, length) matrix of linear interpolation with align_corners=False."""
    return F.interpolate(torch.eye(length)[None], size, mode="linear", align_corners=False)[0].t()


def near_cells(matrix: Tensor) -> slice:
    """Return which of a map's rows (or columns) a part (n, h) of :func:`enlarging` reads."""
    cells = matrix.any(dim=0).nonzero().flatten()
    return slice(int(cells[0]), int(cells[-1]) + 1)


def enlarge(cells: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return (n, W, K) pixels of (h, w, K) cells. With transposed matrices, return gradients of cells.

    Args:
        down: (n, h), rows of :func:`enlarging`.
        across: (W, w), the same for columns.
    """

    def enlarge_rows(x: Tensor) -> Tensor:
        return (down @ x.flatten(1)).unflatten(1, x.shape[1:])

    return across @ enlarge_rows(cells) if len(down) < len(cells) else enlarge_rows(across @ cells)

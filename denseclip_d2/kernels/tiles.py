"""Bilinear enlargement of a map, one tile at a time: what a kernel allocates has a tile's size."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 19
"""Numbers in the largest tensor of a tile: 2 MB, which the caches of processors hold."""


def split_tiles(height: int, width: int, numbers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows and the columns of the tiles of a map with so many numbers a pixel."""
    side = max(1, math.isqrt(CHUNK // numbers))
    for rows in torch.arange(height).split(side):
        for columns in torch.arange(width).split(side):
            yield rows, columns


def enlarging(length: int, size: int) -> Tensor:
    """Return the (size, length) matrix of linear interpolation with align_corners=False."""
    return F.interpolate(torch.eye(length)[None], size, mode="linear", align_corners=False)[0].t()


def near_cells(down: Tensor, across: Tensor) -> tuple[tuple[slice, slice], tuple[Tensor, Tensor]]:
    """Return which rows and columns of a map a tile reads, and their weights for :func:`enlarge`.

    Args:
        down: (n, h), rows of :func:`enlarging`.
        across: (m, w), the same for columns.
    """
    (y, rows), (x, columns) = _near(down), _near(across)
    return (y, x), (rows, columns)


def _near(matrix: Tensor) -> tuple[slice, Tensor]:
    """Return the part of a matrix's columns that is not zero."""
    cells = matrix.any(dim=0).nonzero().flatten()
    near = slice(int(cells[0]), int(cells[-1]) + 1)
    return near, matrix[:, near]


def enlarge(cells: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return (n, W, K) pixels of (h, w, K) cells. With transposed matrices, return gradients of cells.

    Args:
        down: (n, h), rows of :func:`enlarging`.
        across: (W, w), the same for columns.
    """

    def enlarge_rows(x: Tensor) -> Tensor:
        return (down @ x.flatten(1)).unflatten(1, x.shape[1:])

    return across @ enlarge_rows(cells) if len(down) < len(cells) else enlarge_rows(across @ cells)

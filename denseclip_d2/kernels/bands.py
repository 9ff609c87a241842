"""Bilinear enlargement of a map, one band of rows at a time: what a kernel allocates has a band's size."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 20
"""Numbers in the largest tensor of a band."""


def enlarging(length: int, size: int) -> Tensor:
    """Return the (size, length) matrix of linear interpolation with align_corners=False."""
    return F.interpolate(torch.eye(length)[None], size, mode="linear", align_corners=False)[0].t()


def near_rows(down: Tensor) -> slice:
    """Return which of a map's rows a part (n, h) of :func:`enlarging` reads."""
    rows = down.any(dim=0).nonzero().flatten()
    return slice(int(rows[0]), int(rows[-1]) + 1)


def enlarge(cells: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return (n, W, K) pixels of (h, w, K) cells. With transposed matrices, return gradients of cells.

    Args:
        down: (n, h), rows of :func:`enlarging`.
        across: (W, w), the same for columns.
    """

    def enlarge_rows(x: Tensor) -> Tensor:
        return (down @ x.flatten(1)).unflatten(1, x.shape[1:])

    return across @ enlarge_rows(cells) if len(down) < len(cells) else enlarge_rows(across @ cells)

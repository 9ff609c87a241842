import torch
from torch import Tensor


def dense_target(
    shapes: Tensor, image: Tensor, label: Tensor, batch: int, num_classes: int, size: tuple[int, int]
) -> Tensor:
    """Return which cells the boxes or masks of each class cover, without a loop.

    Args:
        shapes: (N, 4) int64 boxes of x1, y1, x2, y2 in cells, covering `[y1:y2, x1:x2]`, inside `size`; or
            (N, H, W) bool masks.
        image, label: (N,) int64, the image in the batch and the class of each.
        batch, num_classes: B and K.
        size: (H, W).
    Returns: (B, K, H, W) bool.
    """
    if shapes.dim() == 3:
        covered = shapes.new_zeros(batch * num_classes, *size, dtype=torch.int32)
        covered.index_add_(0, image * num_classes + label, shapes.int())
        return covered.view(batch, num_classes, *size) > 0
    # A box is the cumulative sum, along both axes, of a sign at each of its corners.
    corners = torch.zeros(batch, num_classes, *size, dtype=torch.int32, device=shapes.device)
    x1, y1, x2, y2 = shapes.unbind(1)
    for y, x, sign in ((y1, x1, 1), (y2, x2, 1), (y1, x2, -1), (y2, x1, -1)):
        corners.index_put_((image, label, y, x), corners.new_full((), sign), accumulate=True)
    return corners.cumsum(2, dtype=torch.int32).cumsum(3, dtype=torch.int32) > 0


def inside(shapes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return which cells in (n,) rows and (m,) columns each of N shapes covers: (N, n, m) bool."""
    if shapes.dim() == 3:
        return shapes[:, rows][:, :, columns]
    x1, y1, x2, y2 = shapes.t()[..., None]
    return ((rows >= y1) & (rows < y2))[:, :, None] & ((columns >= x1) & (columns < x2))[:, None]

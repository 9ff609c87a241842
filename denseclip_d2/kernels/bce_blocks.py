from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .regions import dense_target

CHUNK = 1 << 19
"""Numbers in the largest tensor made for a part of the pixels: it should fit in a core's cache."""


def pixel_text_bce_in_blocks(
    scores: Tensor, shapes: Tensor, image: Tensor, label: Tensor, factor: int, tau: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The masked binary cross-entropy and its gradient, computed where shapes are and a part at a time.

    The `factor` x `factor` pixels between the same four cells of the score map (at a border, between cells
    repeated outwards) are a block: one matrix interpolates the pixels of any block. Blocks that no shape
    touches are left out. Since the loss is a sum, each part gives its gradient at once, and nothing is kept.

    Args, Returns: see :func:`~denseclip_d2.kernels.bce.pixel_text_bce_op`.
    """
    batch, num_classes, height, width = scores.shape
    size = (factor * height, factor * width)
    total = torch.zeros((), dtype=torch.float64)
    count = torch.zeros((), dtype=torch.int64)
    grad = torch.zeros(batch, height * width, num_classes)
    with torch.autocast("cpu", enabled=False):
        weights = _block_weights(factor) / tau
        for i in range(batch):
            own = (image == i).nonzero().squeeze(1)
            table = scores[i].detach().float().flatten(1).t().contiguous()  # (h * w, K)
            region = _Region(shapes[own], label[own], size, factor)
            count += region.count
            for blocks, covered in region.parts(max(num_classes, len(own))):
                cells = region.cells(blocks)  # (4, n)
                corners = table[cells.flatten()].view(4, -1)
                logits = weights @ corners  # (f * f, n * K)
                positive = region.positive(blocks, num_classes)
                part, part_grad = _masked_bce(logits.view(-1, num_classes), positive, covered)
                total += part
                part_grad = weights.t() @ part_grad.view(factor * factor, -1)
                grad[i].index_add_(0, cells.flatten(), part_grad.view(-1, num_classes))
    grad = grad.transpose(1, 2).reshape(scores.shape).contiguous()
    return total.float(), count * num_classes, grad


def _block_weights(factor: int) -> Tensor:
    """How much each of a block's pixels takes of each of its four corners: (f * f, 4)."""
    after = (torch.arange(factor) + factor // 2 + 0.5) / factor - 0.5  # cells from the first corner on
    side = torch.stack([1 - after, after], dim=1)
    return torch.kron(side, side)


def _masked_bce(logits: Tensor, positive: Tensor, covered: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropy over covered pixels, and its gradient, in place of the logits.

    Args:
        logits: (P, K), overwritten.
        positive: (number of ones,) places of the target's ones in the flattened logits, repeated or not.
        covered: (P,), 1 or 0.
    """
    # BCE(x, t) = softplus(-x) where t = 1, else softplus(x): turn the sign there, and back in the gradient.
    flat = logits.view(-1)
    flat[positive] = -flat[positive]
    total = (covered @ _softplus(logits)).sum(dtype=torch.float64)
    grad = logits.sigmoid_().mul_(covered[:, None])
    flat[positive] = -flat[positive]
    return total, grad


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), as exact as PyTorch's: on CPUs log1p takes several times as long as exp and atanh."""
    small = x.abs().neg_().exp_()
    return small.div_(small + 2).atanh_().mul_(2).add_(x.relu())


class _Region:
    """The boxes or masks of one image, seen by blocks."""

    def __init__(self, shapes: Tensor, label: Tensor, size: tuple[int, int], factor: int):
        self.shapes, self.label, self.factor = shapes, label, factor
        self.height, self.width = (side // factor for side in size)
        zeros = torch.zeros_like(label)
        union = dense_target(shapes, zeros, zeros, 1, 1, size)[0, 0] if len(label) else torch.zeros(size) > 0
        self.count = union.sum()
        # Blocks begin in the middle of a cell, and half a cell outside.
        margin = (factor - factor // 2, factor // 2)
        union = F.pad(union, margin * 2)
        self.union = union.unflatten(0, (-1, factor)).unflatten(2, (-1, factor)).transpose(1, 2)

    def parts(self, depth: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The touched blocks, some at a time: (2, n) rows and columns of blocks, and (f * f * n,) 1 or 0."""
        blocks = self.union.any(3).any(2).nonzero()
        length = max(1, CHUNK // (self.factor**2 * depth))
        for part in blocks.split(length):
            rows, columns = part.t()
            yield part.t(), self.union[rows, columns].permute(1, 2, 0).flatten().float()

    def cells(self, blocks: Tensor) -> Tensor:
        """The four cells around each block, in the flattened map: (4, n)."""
        rows, columns = (
            torch.stack([first - 1, first]).clamp(0, side - 1)
            for first, side in zip(blocks, (self.height, self.width), strict=True)
        )
        return (rows[:, None] * self.width + columns[None]).flatten(0, 1)

    def positive(self, blocks: Tensor, num_classes: int) -> Tensor:
        """Where the target is 1, in the blocks' flattened (f * f * n, K) pixels and classes."""
        within = torch.arange(self.factor) + self.factor // 2 - self.factor
        y, x = (first * self.factor + within[:, None] for first in blocks)  # (f, n)
        inside = self._inside(y[:, None], x[None])  # (M, f, f, n)
        owner, pixel = inside.flatten(1).nonzero().unbind(1)
        return pixel * num_classes + self.label[owner]

    def _inside(self, y: Tensor, x: Tensor) -> Tensor:
        if self.shapes.dim() == 3:
            height, width = self.shapes.shape[1:]
            # What is repeated beyond the border is not covered, and does not count.
            return self.shapes[:, y.clamp(0, height - 1), x.clamp(0, width - 1)]
        x1, y1, x2, y2 = self.shapes.t()[..., None, None, None]
        return (y >= y1) & (y < y2) & ((x >= x1) & (x < x2))

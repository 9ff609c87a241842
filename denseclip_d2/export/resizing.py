"""Resizing as Pillow does it, in operations that every runtime has."""

from typing import Any

import torch
from detectron2.layers import shapes_to_tensor
from torch import Tensor

Side = Any
"""Pixels: an int, and while a model is traced a tensor."""

# Weighted sums that are halves by arithmetic are so in no runtime exactly; this rounds them up in all.
HALF = 0.5 + 1 / 4096


def fitted_size(height: Side, width: Side, shortest: int, longest: int) -> Tensor:
    """The size that Detectron2's ``ResizeShortestEdge`` gives an image at test time.

    Args:
        shortest, longest: ``INPUT.MIN_SIZE_TEST`` and ``MAX_SIZE_TEST``; 0 as the former leaves it as it is.
    Returns: (2,) int64, height and width.
    """
    sides = shapes_to_tensor([height, width])
    if not shortest:
        return sides
    exact = sides.double() * (shortest / sides.min().double())
    exact = exact * (longest / exact.max()).clamp(max=1)
    return (exact + 0.5).floor().clamp(min=1).long()


def resize(images: Tensor, size: Tensor) -> Tensor:
    """Resize as Pillow's ``BILINEAR`` does: rows, then columns, each rounded to whole grey levels.

    Args:
        images: (N, 3, H, W) float, of whole numbers in 0..255.
        size: (2,) int64, height and width.
    Returns: (N, 3, height, width), of whole numbers; of Pillow's a few in a thousand differ, by 1.
    """
    height, width = size.unbind()
    rows = _rounded(images @ _weights(width, images.shape[3]).transpose(-1, -2))
    return _rounded(_weights(height, images.shape[2]) @ rows)


def _weights(new: Side, old: Side) -> Tensor:
    """(new, old) weights of old pixels in new ones: triangles, as wide as the step where that is over 1."""
    step = old / new.double()
    centres = (torch.arange(new) + 0.5) * step - 0.5
    distances = (torch.arange(old) - centres[:, None]).abs()
    weights = (1 - distances / step.clamp(min=1)).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _rounded(levels: Tensor) -> Tensor:
    return (levels + HALF).floor().clamp(0, 255)

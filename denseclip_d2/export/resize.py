"""Resizing as Pillow does it, in operations that every runtime has."""

from typing import Any

import torch
from detectron2.layers import shapes_to_tensor
from torch import Tensor

from .sizes import LARGEST, rounded_down

Side = Any
"""Pixels: an int, and while a model is traced a tensor."""

# Weighted sums that are halves by arithmetic are so in no runtime exactly; this rounds them up in all.
HALF = 0.5 + 1 / 4096

MOST = 4 * LARGEST - 1
"""The longest side that images are resized to: twice it times ``LARGEST`` is within int32, which
OpenVINO makes of int64."""


def fitted_size(sides: Tensor, shortest: int, longest: int) -> Tensor:
    """Return the size that ``ResizeShortestEdge`` gives an image at test time.

    Only integers are computed: exporters and runtimes turn float64, which Detectron2 uses, into float32.

    Args:
        sides: (..., 2) int64, height and width, up to ``LARGEST``. If larger sides scale to a half, the
            result may be one pixel too large.
        shortest, longest: ``INPUT.MIN_SIZE_TEST`` and ``MAX_SIZE_TEST``; with 0 as the former, images keep
            their size.
    Returns: (..., 2) int64, height and width.
    """
    if not shortest:
        return sides
    longest = min(longest, MOST)
    low, high = sides.amin(dim=-1, keepdim=True), sides.amax(dim=-1, keepdim=True)
    capped = shortest * high > longest * low
    new, old = torch.where(capped, longest, shortest), torch.where(capped, high, low)
    half_up = divided(2 * new * sides + old, 2 * old)
    lower, higher = torch.from_numpy(rounded_down(shortest, longest)).unbind(dim=1)
    down = ((low == lower) & (high == higher)).any(dim=-1, keepdim=True)
    return (half_up - (down & (sides != old)).long()).clamp(min=1)


def divided(a: Tensor, b: Tensor | int) -> Tensor:
    """Return a / b, rounded down. OpenVINO divides integers in float32, so that the quotient is corrected."""
    quotient = torch.div(a, b, rounding_mode="trunc")
    rest = a - quotient * b
    return quotient + (rest >= b).long() - (rest < 0).long()


def resize(images: Tensor, size: Tensor) -> Tensor:
    """Resize as Pillow's ``BILINEAR`` does: rows, then columns, each rounded to whole gray levels.

    Args:
        images: (N, 3, H, W) float, of whole numbers in 0..255.
        size: (2,) int64, height and width.
    Returns: (N, 3, height, width), of whole numbers; of Pillow's a few in a thousand differ, by 1.
    """
    height, width = size.unbind()
    rows = _rounded(images @ _weights(width, images.shape[3]).transpose(-1, -2))
    return _rounded(_weights(height, images.shape[2]) @ rows)


def _weights(new: Side, old: Side) -> Tensor:
    """Return the (new, old) weights of old pixels in new ones: triangles as wide as a step, or 1."""
    # In units of 1 / (2 * new) of an old pixel, centers and widths are integers.
    centers = (2 * torch.arange(new) + 1) * old
    distances = ((2 * torch.arange(old) + 1) * new - centers[:, None]).abs()
    weights = (2 * shapes_to_tensor([new, old]).max() - distances).clamp(min=0)
    return weights / weights.sum(dim=1, keepdim=True)


def _rounded(levels: Tensor) -> Tensor:
    return (levels + HALF).floor().clamp(0, 255)

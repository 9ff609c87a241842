"""Four levels from the maps of a transformer, which have one stride (released behavior)."""

from collections.abc import Iterable, Sequence
from math import log2

from detectron2.layers import get_norm
from torch import nn

LEVELS = {"res2": "fpn1", "res3": "fpn2", "res4": "fpn3", "res5": "fpn4"}
"""The layer of each level."""

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
DEPTHS = {"res2": 1 / 3, "res3": 1 / 2, "res4": 2 / 3, "res5": 1}
"""The part of the blocks before each level's map."""


def out_indices(blocks: int) -> dict[str, int]:
    """Return the number of blocks before each level's map: 4, 6, 8 and 12 of 12."""
    return {name: max(1, round(blocks * depth)) for name, depth in DEPTHS.items()}


def token_stride(patch_size: int) -> int:
    """Return the distance of tokens in pixels: the power of two that is nearest to a patch's width."""
    return 2 ** round(log2(patch_size))


def levels_read(in_features: Sequence[str]) -> tuple[str, ...]:
    """Return the levels to build for a pyramid; all if ``in_features`` is empty."""
    # A level that nothing reads would have weights without gradient, which DDP refuses.
    return tuple(in_features or STRIDES)


def check_levels(out_features: Sequence[str], levels: Iterable[str], what: str = "a CLIP ViT") -> None:
    """
    Raises:
        ValueError: ``what`` lacks a level.
    """
    if unknown := set(out_features) - set(levels):
        names = ", ".join(sorted(unknown))
        raise ValueError(f"{what} has no level {names}. Choose levels from {', '.join(levels)}.")


def build_scale_layer(width: int, factor: float, norm: str) -> nn.Module:
    """Build layers that make a map ``factor`` times as large, a power of two."""
    layers: list[nn.Module] = [nn.GroupNorm(1, width)]
    for i in range(round(log2(factor))):
        if i > 0:
            layers += [get_norm(norm, width) or nn.Identity(), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width, kernel_size=2, stride=2))
    if factor < 1:
        layers.append(nn.MaxPool2d(round(1 / factor)))
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]

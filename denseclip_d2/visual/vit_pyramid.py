"""Four levels from the maps of a transformer whose cells all have one stride (released behavior)."""

from collections.abc import Iterable, Sequence
from math import log2

from detectron2.layers import get_norm
from torch import nn

LEVELS = {"res2": "fpn1", "res3": "fpn2", "res4": "fpn3", "res5": "fpn4"}
"""What makes each level of a map."""

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
DEPTHS = {"res2": 1 / 3, "res3": 1 / 2, "res4": 2 / 3, "res5": 1}
"""After which part of the blocks a level's map is taken."""


def taps_of(blocks: int) -> dict[str, int]:
    """After how many of ``blocks`` each level's map is taken: 4, 6, 8 and 12 of 12."""
    return {name: max(1, round(blocks * depth)) for name, depth in DEPTHS.items()}


def token_stride(patch_size: int) -> int:
    """How far tokens are to stand apart: a patch's width, or the power of two that is nearest to it."""
    return 2 ** round(log2(patch_size))


def levels_read(in_features: Sequence[str]) -> tuple[str, ...]:
    """The levels to build for what a pyramid reads: all, where it does not say.

    A level that nothing reads would have weights without gradient, which DDP refuses.
    """
    return tuple(in_features or STRIDES)


def check_levels(out_features: Sequence[str], levels: Iterable[str], what: str = "a CLIP ViT") -> None:
    """
    Raises:
        ValueError: ``what`` has not all of the levels.
    """
    if unknown := set(out_features) - set(levels):
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES names {', '.join(sorted(unknown))}; {what} has {', '.join(levels)}."
        )


def resampling(width: int, factor: float, norm: str) -> nn.Module:
    """A map ``factor`` times as large, a power of two; for patches of 16 pixels as released."""
    layers: list[nn.Module] = [nn.GroupNorm(1, width)]
    for i in range(round(log2(factor))):
        if i > 0:
            layers += [get_norm(norm, width) or nn.Identity(), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width, kernel_size=2, stride=2))
    if factor < 1:
        layers.append(nn.MaxPool2d(round(1 / factor)))
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]

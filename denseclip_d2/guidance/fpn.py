from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from .features import LanguageGuidedFeatures


class LanguageGuidedNeck(LanguageGuidedFeatures):
    """Any Detectron2 neck on language-guided features."""

    def __init__(self, *, neck: Callable[[Backbone], Backbone], **guidance):
        """
        Args:
            neck: makes the neck from its bottom-up network.
            guidance: as for :class:`LanguageGuidedFeatures`.
        """
        super().__init__(**guidance)
        self.fpn = neck(_GuidedFeatures(self.guided_shapes))

    @property
    def size_divisibility(self) -> int:
        return max(super().size_divisibility, self.fpn.size_divisibility)

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.fpn.padding_constraints

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.fpn.output_shape()

    def forward(self, x: Tensor) -> dict[str, Any]:
        """
        Args:
            x: (B, 3, H, W), normalized; H and W multiples of ``size_divisibility``.
        Returns: the neck's features, such as ``p2``..``p6`` of an FPN, and what heads and :meth:`score_maps`
            read.
        """
        features = super().forward(x)
        kept = (
            "score_map", "text_embeddings", "stuff_embeddings", "clip_scores", "global_embedding",
            "dense_embedding",
        )  # fmt: skip
        return {**self.fpn(features), **{name: features[name] for name in kept if name in features}}


class LanguageGuidedFPN(LanguageGuidedNeck):
    """A feature pyramid that reads a pixel-text score map beside the visual features (paper, sec. 3.2)."""

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        out_channels: int,
        top_block: str = "",
        norm: str = "",
        fuse_type: str = "sum",
        **guidance,
    ):
        """
        Args:
            in_features, out_channels, top_block, norm, fuse_type: see :func:`build_fpn`.
            guidance: as for :class:`LanguageGuidedFeatures`.
        """
        neck = partial(
            build_fpn, in_features=in_features, out_channels=out_channels, top_block=top_block, norm=norm,
            fuse_type=fuse_type,
        )  # fmt: skip
        super().__init__(neck=neck, **guidance)


class _GuidedFeatures(Backbone):
    """The bottom-up network of a neck: it has the guided shapes and returns its input."""

    def __init__(self, shapes: dict[str, ShapeSpec]):
        super().__init__()
        self._shapes = shapes

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


class LastLevelP6P7WithoutReLU(LastLevelP6P7):
    """P7 as a convolution of P6 itself, as in the released RetinaNets."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


P6_P7 = {"p6_p7": LastLevelP6P7, "p6_p7_without_relu": LastLevelP6P7WithoutReLU}
"""Top blocks that read ``res5``, for RetinaNet."""


def build_fpn(
    bottom_up: Backbone,
    *,
    in_features: Sequence[str],
    out_channels: int,
    top_block: str = "",
    norm: str = "",
    fuse_type: str = "sum",
) -> FPN:
    """Return Detectron2's FPN.

    Args:
        top_block: "" ends at P5; "max_pool" adds P6, for RPNs; "p6_p7" adds P6 = conv(res5) and
            P7 = conv(relu(P6)), as in Detectron2; "p6_p7_without_relu" has P7 = conv(P6), as released.
        bottom_up, in_features, out_channels, norm, fuse_type: as for ``FPN``.

    Raises:
        ValueError: an unknown ``top_block``.
    """
    top: nn.Module | None = None
    if top_block in P6_P7:
        top = P6_P7[top_block](bottom_up.output_shape()["res5"].channels, out_channels)
    elif top_block == "max_pool":
        top = LastLevelMaxPool()
    elif top_block:
        raise ValueError(
            f"top_block is {top_block!r}; it has to be '', 'max_pool' or one of {', '.join(P6_P7)}."
        )
    return FPN(bottom_up, in_features, out_channels, norm, top, fuse_type=fuse_type)

from collections.abc import Callable, Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from .features import LanguageGuidedFeatures

TopBlockBuilder = Callable[[dict[str, ShapeSpec]], nn.Module | None]


class LanguageGuidedNeck(LanguageGuidedFeatures):
    """Any of Detectron2's necks on language-guided features. The output holds its, and ``score_map``."""

    def __init__(self, *, neck: Callable[[Backbone], Backbone], **guidance):
        """
        Args:
            neck: makes the neck from its bottom-up network, which here is what passes the features on.
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

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, 3, H, W), normalized; H and W multiples of ``size_divisibility``.
        Returns: the neck's features, such as ``p2``..``p6`` of an FPN, and what :meth:`score_maps` reads.
        """
        features = super().forward(x)
        kept = ("score_map", "global_embedding", "dense_embedding")
        return {**self.fpn(features), **{name: features[name] for name in kept}}


class LanguageGuidedFPN(LanguageGuidedNeck):
    """The feature pyramid that reads a pixel-text score map beside the visual features (paper, sec. 3.2)."""

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        out_channels: int,
        top_block: TopBlockBuilder,
        norm: str = "",
        fuse_type: str = "sum",
        **guidance,
    ):
        """
        Args:
            in_features, out_channels, norm, fuse_type: as for Detectron2's FPN.
            top_block: makes FPN's top block, if any, from the guided features' shapes.
            guidance: as for :class:`LanguageGuidedFeatures`.
        """

        def fpn(bottom_up: Backbone) -> FPN:
            top = top_block(bottom_up.output_shape())
            return FPN(bottom_up, in_features, out_channels, norm, top, fuse_type=fuse_type)

        super().__init__(neck=fpn, **guidance)


class _GuidedFeatures(Backbone):
    """Stands where a neck expects its bottom-up network: tells the guided shapes, passes the features on."""

    def __init__(self, shapes: dict[str, ShapeSpec]):
        super().__init__()
        self._shapes = shapes

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


class LastLevelP6P7WithoutReLU(LastLevelP6P7):
    """P7 as a convolution of P6 itself, as the released RetinaNets have it."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


def p6_p7(out_channels: int, relu: bool = True) -> TopBlockBuilder:
    """P6 of the guided res5 and P7 of P6, for RetinaNet.

    Args:
        relu: P7 = conv(relu(P6)), as Detectron2 has it; False: conv(P6), as the released RetinaNets have it.
    """
    cls = LastLevelP6P7 if relu else LastLevelP6P7WithoutReLU
    return lambda shapes: cls(shapes["res5"].channels, out_channels)


def max_pool() -> TopBlockBuilder:
    """P6 of P5, for RPNs."""
    return lambda shapes: LastLevelMaxPool()


def no_top_block() -> TopBlockBuilder:
    """P5 is the last level."""
    return lambda shapes: None

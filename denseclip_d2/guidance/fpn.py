from collections.abc import Callable, Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ..data.class_names import get_class_names
from ..kernels import pixel_text_scores
from ..language import PromptedTextEncoder
from ..visual import build_visual_encoder

TopBlockBuilder = Callable[[dict[str, ShapeSpec]], nn.Module | None]


class LanguageGuidedFPN(Backbone):
    """A feature pyramid that reads a pixel-text score map beside the visual features (paper, sec. 3.2).

    The score map s is concatenated to one feature of the visual encoder, and Detectron2's FPN goes on from
    there. The output holds the pyramid and, under ``score_map``, s itself: (B, K, h, w), in [-1, 1]. Since
    heads pick their features by name, ``score_map`` is not part of :meth:`output_shape`.
    """

    def __init__(
        self,
        *,
        visual: Backbone,
        language: PromptedTextEncoder,
        in_features: Sequence[str],
        out_channels: int,
        top_block: TopBlockBuilder,
        norm: str = "",
        fuse_type: str = "sum",
        level: str = "",
        tau: float = 0.07,
        concat: bool = True,
        concat_logits: bool = True,
        kernels: bool = True,
    ):
        """
        Args:
            visual: gives features by name, ``global_embedding`` and ``dense_embedding``; its
                ``embedding_stride`` tells the dense embedding's.
            in_features, out_channels, norm, fuse_type: as for Detectron2's FPN.
            top_block: makes FPN's top block, if any, from the guided features' shapes.
            level: the feature that the score map joins; empty: the one of the dense embedding's stride.
            tau: temperature.
            concat: False leaves the features as they are, and the score map to the loss alone.
            concat_logits: concatenate s / tau (detection, as released) or s (segmentation, as released).
            kernels: compute the score map by a kernel where there is one; False: by its definition.

        Raises:
            ValueError: ``level`` is not a feature of the dense embedding's stride.
        """
        super().__init__()
        shapes = visual.output_shape()
        fitting = [name for name, shape in shapes.items() if shape.stride == visual.embedding_stride]
        level = level or next(iter(fitting), "")
        if level not in fitting:
            raise ValueError(
                f"MODEL.DENSECLIP.SCORE_MAP.LEVEL = {level!r}; the score map has stride "
                f"{visual.embedding_stride}, as {', '.join(fitting) or 'none of MODEL.FPN.IN_FEATURES'} has."
            )
        self.visual = visual
        self.language = language
        self.level = level
        self.tau = tau
        self.concat = concat
        self.concat_logits = concat_logits
        self.kernels = kernels
        self.score_map_stride = visual.embedding_stride
        channels = shapes[level].channels + concat * len(language.class_names)
        shapes[level] = ShapeSpec(channels=channels, stride=shapes[level].stride)
        self.fpn = FPN(
            _GuidedFeatures(shapes), in_features, out_channels, norm, top_block(shapes), fuse_type=fuse_type
        )

    @property
    def size_divisibility(self) -> int:
        return self.fpn.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.fpn.padding_constraints

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self.fpn.output_shape()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, 3, H, W), normalised; H and W multiples of ``size_divisibility``.
        Returns: the pyramid, ``p2``..``p6`` or ``p3``..``p7``, and ``score_map``.
        """
        features = self.visual(x)
        dense = features["dense_embedding"]
        text = self.language(features["global_embedding"], dense)
        scores, logits = pixel_text_scores(dense, text, self.tau, self.kernels)
        if self.concat:
            guide = logits if self.concat_logits else scores
            features = {**features, self.level: torch.cat([features[self.level], guide], dim=1)}
        return {**self.fpn(features), "score_map": scores}


def guidance_of(model: nn.Module) -> LanguageGuidedFPN | None:
    """The language-guided backbone of a Detectron2 model; None where it has another, or none."""
    backbone = getattr(model, "backbone", None)
    return backbone if isinstance(backbone, LanguageGuidedFPN) else None


class _GuidedFeatures(Backbone):
    """Stands where FPN expects its bottom-up network: tells the guided shapes, passes the features on."""

    def __init__(self, shapes: dict[str, ShapeSpec]):
        super().__init__()
        self._shapes = shapes

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return features


class LastLevelP6P7WithoutReLU(LastLevelP6P7):
    """P7 as a convolution of P6 itself, as the released RetinaNets have it."""

    def forward(self, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


def _p6_p7(cfg) -> TopBlockBuilder:
    cls = LastLevelP6P7 if cfg.MODEL.DENSECLIP.FPN_P7_RELU else LastLevelP6P7WithoutReLU
    return lambda shapes: cls(shapes["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS)


def _max_pool(cfg) -> TopBlockBuilder:
    return lambda shapes: LastLevelMaxPool()


def _none(cfg) -> TopBlockBuilder:
    return lambda shapes: None


def _build_guided(cfg, top_block: TopBlockBuilder) -> LanguageGuidedFPN:
    score_map = cfg.MODEL.DENSECLIP.SCORE_MAP
    return LanguageGuidedFPN(
        visual=build_visual_encoder(cfg),
        language=PromptedTextEncoder(cfg, get_class_names(cfg)),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        top_block=top_block,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        level=score_map.LEVEL,
        tau=score_map.TAU,
        concat=score_map.CONCAT,
        concat_logits=score_map.CONCAT_LOGITS,
        kernels=cfg.MODEL.DENSECLIP.KERNELS,
    )


def _build_plain(cfg, top_block: TopBlockBuilder) -> FPN:
    visual = build_visual_encoder(cfg, with_embeddings=False)
    return FPN(
        visual,
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        cfg.MODEL.FPN.NORM,
        top_block(visual.output_shape()),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_denseclip_fpn_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedFPN:
    """CLIP's visual encoder and language-guided pyramid, P2 to P6."""
    return _build_guided(cfg, _max_pool(cfg))


@BACKBONE_REGISTRY.register()
def build_denseclip_retinanet_fpn_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedFPN:
    """CLIP's visual encoder and language-guided pyramid, P3 to P7; P6 reads the guided res5."""
    return _build_guided(cfg, _p6_p7(cfg))


@BACKBONE_REGISTRY.register()
def build_denseclip_semantic_fpn_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedFPN:
    """CLIP's visual encoder and language-guided pyramid, P2 to P5."""
    return _build_guided(cfg, _none(cfg))


@BACKBONE_REGISTRY.register()
def build_clip_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """CLIP's visual encoder and a plain pyramid, P2 to P6, without language."""
    return _build_plain(cfg, _max_pool(cfg))


@BACKBONE_REGISTRY.register()
def build_clip_retinanet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """CLIP's visual encoder and a plain pyramid, P3 to P7, without language."""
    return _build_plain(cfg, _p6_p7(cfg))


@BACKBONE_REGISTRY.register()
def build_clip_semantic_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """CLIP's visual encoder and a plain pyramid, P2 to P5, without language."""
    return _build_plain(cfg, _none(cfg))

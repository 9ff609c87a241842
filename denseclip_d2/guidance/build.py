"""Backbones by the names that a config gives them."""

from functools import partial

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone

from ..language import PromptedTextEncoder
from ..visual import VisualEncoder, build_visual_encoder
from ..visual.vit_pyramid import check_levels
from .features import LanguageGuidedFeatures
from .fpn import LanguageGuidedFPN, LanguageGuidedNeck, TopBlockBuilder, max_pool, no_top_block, p6_p7
from .simple_pyramid import LastMapViT, SimplePyramid


def _p6_p7(cfg) -> TopBlockBuilder:
    return p6_p7(cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.DENSECLIP.FPN_P7_RELU)


def _guidance(cfg, visual: VisualEncoder) -> dict:
    score_map, class_names = cfg.MODEL.DENSECLIP.SCORE_MAP, cfg.MODEL.DENSECLIP.CLASS_NAMES
    if not class_names:
        raise ValueError(
            "MODEL.DENSECLIP.CLASS_NAMES is empty. Set it to the names of the classes, or to "
            "`denseclip_d2.data.get_class_names(cfg)`, which takes them from DATASETS."
        )
    return {
        "visual": visual,
        "language": PromptedTextEncoder(cfg, class_names),
        "level": score_map.LEVEL,
        "tau": score_map.TAU,
        "concat": score_map.CONCAT,
        "concat_logits": score_map.CONCAT_LOGITS,
        "kernels": cfg.MODEL.DENSECLIP.KERNELS,
    }


def _with_levels(cfg, visual: VisualEncoder) -> VisualEncoder:
    """The encoder, if it gives what the pyramid reads: Detectron2's backbones have keys of their own."""
    name = cfg.MODEL.DENSECLIP.VISUAL.BACKBONE or cfg.MODEL.DENSECLIP.CLIP_MODEL
    check_levels(cfg.MODEL.FPN.IN_FEATURES, visual.output_shape(), name)
    return visual


def _build_guided(cfg, top_block: TopBlockBuilder) -> LanguageGuidedFPN:
    return LanguageGuidedFPN(
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        top_block=top_block,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        **_guidance(cfg, _with_levels(cfg, build_visual_encoder(cfg))),
    )


def _build_plain(cfg, top_block: TopBlockBuilder) -> FPN:
    visual = _with_levels(cfg, build_visual_encoder(cfg, with_embeddings=False))
    return FPN(
        visual,
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        cfg.MODEL.FPN.NORM,
        top_block(visual.output_shape()),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _simple_pyramid(cfg, bottom_up: Backbone) -> SimplePyramid:
    return SimplePyramid(bottom_up, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM)


@BACKBONE_REGISTRY.register()
def build_denseclip_fpn_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedFPN:
    """CLIP's visual encoder and language-guided pyramid, P2 to P6."""
    return _build_guided(cfg, max_pool())


@BACKBONE_REGISTRY.register()
def build_denseclip_retinanet_fpn_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedFPN:
    """CLIP's visual encoder and language-guided pyramid, P3 to P7; P6 reads the guided res5."""
    return _build_guided(cfg, _p6_p7(cfg))


@BACKBONE_REGISTRY.register()
def build_denseclip_semantic_fpn_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedFPN:
    """CLIP's visual encoder and language-guided pyramid, P2 to P5."""
    return _build_guided(cfg, no_top_block())


@BACKBONE_REGISTRY.register()
def build_clip_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """CLIP's visual encoder and a plain pyramid, P2 to P6, without language."""
    return _build_plain(cfg, max_pool())


@BACKBONE_REGISTRY.register()
def build_clip_retinanet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """CLIP's visual encoder and a plain pyramid, P3 to P7, without language."""
    return _build_plain(cfg, _p6_p7(cfg))


@BACKBONE_REGISTRY.register()
def build_clip_semantic_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """CLIP's visual encoder and a plain pyramid, P2 to P5, without language."""
    return _build_plain(cfg, no_top_block())


@BACKBONE_REGISTRY.register()
def build_denseclip_simple_fpn_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedNeck:
    """CLIP's ViT and Detectron2's simple pyramid of its last map and the score map, P2 to P6.

    There is one map, so that ``MODEL.FPN.IN_FEATURES`` does not count.
    """
    return LanguageGuidedNeck(neck=partial(_simple_pyramid, cfg), **_guidance(cfg, LastMapViT(cfg)))


@BACKBONE_REGISTRY.register()
def build_clip_simple_fpn_backbone(cfg, input_shape: ShapeSpec) -> SimplePyramid:
    """CLIP's ViT and Detectron2's simple pyramid of its last map, P2 to P6, without language."""
    return _simple_pyramid(cfg, LastMapViT(cfg, with_embeddings=False))


@BACKBONE_REGISTRY.register()
def build_denseclip_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedFeatures:
    """CLIP's visual encoder and the score map in one of its features, without a pyramid.

    Of a ViT, ``MODEL.FPN.IN_FEATURES`` has to be what the head reads: it builds no other levels.
    """
    return LanguageGuidedFeatures(**_guidance(cfg, build_visual_encoder(cfg)))


@BACKBONE_REGISTRY.register()
def build_clip_backbone(cfg, input_shape: ShapeSpec) -> VisualEncoder:
    """CLIP's visual encoder alone, without language and without a pyramid."""
    return build_visual_encoder(cfg, with_embeddings=False)

"""The backbones that a config names in ``MODEL.BACKBONE.NAME``."""

from collections.abc import Callable
from functools import partial, wraps

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone

from ..language import PromptedTextEncoder
from ..visual import VisualEncoder, build_visual_encoder
from ..visual.vit_pyramid import check_levels
from .features import LanguageGuidedFeatures, ScoreMapBackbone
from .fpn import LanguageGuidedFPN, LanguageGuidedNeck, build_fpn
from .geometric_ensemble import GeometricEnsemble
from .model_settings import ModelSettings
from .simple_pyramid import LastMapViT, SimplePyramid


def _register(build: Callable[..., Backbone]) -> Callable[..., Backbone]:
    """Register a builder of backbones, which keep the settings of their config as ``settings``."""

    @wraps(build)
    def with_settings(cfg, input_shape: ShapeSpec):
        backbone = build(cfg, input_shape)
        guided = isinstance(backbone, LanguageGuidedFeatures)
        backbone.settings = ModelSettings.from_config(cfg, guided=guided)
        return backbone

    return BACKBONE_REGISTRY.register()(with_settings)


def _guidance(cfg, visual: VisualEncoder) -> dict:
    score_map, class_names = cfg.MODEL.DENSECLIP.SCORE_MAP, cfg.MODEL.DENSECLIP.CLASS_NAMES
    geometric_ensemble = cfg.MODEL.DENSECLIP.GEOMETRIC_ENSEMBLE
    if not class_names:
        raise ValueError(
            "MODEL.DENSECLIP.CLASS_NAMES is empty. Set it to the names of the classes, or to "
            "`denseclip_d2.data.get_class_names(cfg)`, which takes them from DATASETS."
        )
    language = PromptedTextEncoder(cfg, class_names)
    return {
        "visual": visual,
        "language": language,
        "level": score_map.LEVEL,
        "tau": score_map.TAU,
        "concat": score_map.CONCAT,
        "concat_logits": score_map.CONCAT_LOGITS,
        "denoise": score_map.DENOISE,
        "kernels": cfg.MODEL.DENSECLIP.FUSED_OPS,
        "ensemble": GeometricEnsemble(
            tuple(class_names),
            geometric_ensemble.ALPHA,
            geometric_ensemble.BETA,
            language.learned.name if language.learned else "",
        )
        if geometric_ensemble.ALPHA or geometric_ensemble.BETA
        else None,
    }


def _with_levels(cfg, visual: VisualEncoder) -> VisualEncoder:
    """Return the encoder after a check, since Detectron2's backbones choose their levels by other keys."""
    name = cfg.MODEL.DENSECLIP.VISUAL.BACKBONE or cfg.MODEL.DENSECLIP.CLIP_MODEL
    check_levels(cfg.MODEL.FPN.IN_FEATURES, visual.output_shape(), name)
    return visual


def _fpn(cfg, top_block: str) -> dict:
    fpn = cfg.MODEL.FPN
    return {
        "in_features": fpn.IN_FEATURES,
        "out_channels": fpn.OUT_CHANNELS,
        "top_block": top_block,
        "norm": fpn.NORM,
        "fuse_type": fpn.FUSE_TYPE,
    }


def _p6_p7(cfg) -> str:
    return "p6_p7" if cfg.MODEL.DENSECLIP.FPN_P7_RELU else "p6_p7_without_relu"


def _build_guided(cfg, top_block: str) -> LanguageGuidedFPN:
    visual = _with_levels(cfg, build_visual_encoder(cfg))
    return LanguageGuidedFPN(**_fpn(cfg, top_block), **_guidance(cfg, visual))


def _build_plain(cfg, top_block: str) -> FPN:
    visual = _with_levels(cfg, build_visual_encoder(cfg, with_embeddings=False))
    return build_fpn(visual, **_fpn(cfg, top_block))


def _simple_pyramid(cfg, bottom_up: Backbone) -> SimplePyramid:
    return SimplePyramid(bottom_up, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM)


@_register
def build_denseclip_fpn_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedFPN:
    """Build CLIP's visual encoder and language-guided pyramid, P2 to P6."""
    return _build_guided(cfg, "max_pool")


@_register
def build_denseclip_retinanet_fpn_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedFPN:
    """Build CLIP's visual encoder and language-guided pyramid, P3 to P7; P6 reads the guided res5."""
    return _build_guided(cfg, _p6_p7(cfg))


@_register
def build_denseclip_semantic_fpn_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedFPN:
    """Build CLIP's visual encoder and language-guided pyramid, P2 to P5."""
    return _build_guided(cfg, "")


@_register
def build_clip_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build CLIP's visual encoder and a plain pyramid, P2 to P6, without language."""
    return _build_plain(cfg, "max_pool")


@_register
def build_clip_retinanet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build CLIP's visual encoder and a plain pyramid, P3 to P7, without language."""
    return _build_plain(cfg, _p6_p7(cfg))


@_register
def build_clip_semantic_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """Build CLIP's visual encoder and a plain pyramid, P2 to P5, without language."""
    return _build_plain(cfg, "")


@_register
def build_denseclip_simple_fpn_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedNeck:
    """Build CLIP's ViT and Detectron2's simple pyramid of its last map and the score map, P2 to P6.

    ``MODEL.FPN.IN_FEATURES`` has no effect.
    """
    return LanguageGuidedNeck(neck=partial(_simple_pyramid, cfg), **_guidance(cfg, LastMapViT(cfg)))


@_register
def build_clip_simple_fpn_backbone(cfg, input_shape: ShapeSpec) -> SimplePyramid:
    """Build CLIP's ViT and Detectron2's simple pyramid of its last map, P2 to P6, without language."""
    return _simple_pyramid(cfg, LastMapViT(cfg, with_embeddings=False))


@_register
def build_denseclip_backbone(cfg, input_shape: ShapeSpec) -> LanguageGuidedFeatures:
    """Build CLIP's visual encoder and the score map in one of its features, without a pyramid.

    A ViT builds the levels of ``MODEL.FPN.IN_FEATURES`` alone, which have to be those of the head.
    """
    return LanguageGuidedFeatures(**_guidance(cfg, build_visual_encoder(cfg)))


@_register
def build_denseclip_score_map_backbone(cfg, input_shape: ShapeSpec) -> ScoreMapBackbone:
    """Build CLIP's encoders and the score map, without any other feature and so without a layer to learn."""
    return ScoreMapBackbone(**_guidance(cfg, build_visual_encoder(cfg, with_levels=False)))


@_register
def build_clip_backbone(cfg, input_shape: ShapeSpec) -> VisualEncoder:
    """Build CLIP's visual encoder alone, without language and without a pyramid."""
    return build_visual_encoder(cfg, with_embeddings=False)

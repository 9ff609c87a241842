from ..kernels import pixel_text_scores
from .build import (
    build_clip_backbone,
    build_clip_fpn_backbone,
    build_clip_retinanet_fpn_backbone,
    build_clip_semantic_fpn_backbone,
    build_clip_simple_fpn_backbone,
    build_denseclip_backbone,
    build_denseclip_fpn_backbone,
    build_denseclip_retinanet_fpn_backbone,
    build_denseclip_score_map_backbone,
    build_denseclip_semantic_fpn_backbone,
    build_denseclip_simple_fpn_backbone,
)
from .features import SCORE_MAP, LanguageGuidedFeatures, ScoreMapBackbone, guidance_of
from .fpn import LanguageGuidedFPN, LanguageGuidedNeck
from .geometric_ensemble import CLIPScores, GeometricEnsemble
from .losses import label_map_loss, pixel_text_loss, pixel_text_softmax_loss, region_targets
from .simple_pyramid import SimplePyramid
from .text_classifier import TextClassifier, sampled_softmax_logits

__all__ = [
    "CLIPScores",
    "GeometricEnsemble",
    "LanguageGuidedFPN",
    "LanguageGuidedFeatures",
    "LanguageGuidedNeck",
    "SCORE_MAP",
    "ScoreMapBackbone",
    "SimplePyramid",
    "TextClassifier",
    "build_clip_backbone",
    "build_clip_fpn_backbone",
    "build_clip_retinanet_fpn_backbone",
    "build_clip_semantic_fpn_backbone",
    "build_clip_simple_fpn_backbone",
    "build_denseclip_backbone",
    "build_denseclip_fpn_backbone",
    "build_denseclip_retinanet_fpn_backbone",
    "build_denseclip_score_map_backbone",
    "build_denseclip_semantic_fpn_backbone",
    "build_denseclip_simple_fpn_backbone",
    "guidance_of",
    "label_map_loss",
    "pixel_text_loss",
    "pixel_text_scores",
    "pixel_text_softmax_loss",
    "region_targets",
    "sampled_softmax_logits",
]

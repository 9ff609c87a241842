from ..kernels import pixel_text_scores
from .fpn import (
    LanguageGuidedFPN,
    build_clip_fpn_backbone,
    build_clip_retinanet_fpn_backbone,
    build_clip_semantic_fpn_backbone,
    build_denseclip_fpn_backbone,
    build_denseclip_retinanet_fpn_backbone,
    build_denseclip_semantic_fpn_backbone,
    guidance_of,
)
from .losses import box_targets, mask_targets, pixel_text_loss

__all__ = [
    "LanguageGuidedFPN",
    "box_targets",
    "build_clip_fpn_backbone",
    "build_clip_retinanet_fpn_backbone",
    "build_clip_semantic_fpn_backbone",
    "build_denseclip_fpn_backbone",
    "build_denseclip_retinanet_fpn_backbone",
    "build_denseclip_semantic_fpn_backbone",
    "guidance_of",
    "mask_targets",
    "pixel_text_loss",
    "pixel_text_scores",
]

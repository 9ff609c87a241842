from .build import VisualEncoder, build_visual_encoder, encoder_class, untrained_dense_feature
from .clip_resnet import CLIPResNet, build_clip_resnet_backbone
from .clip_timm import CLIPTimm
from .clip_vit import CLIPViT, build_clip_vit_backbone
from .projected_backbone import ProjectedBackbone
from .timm_backbone import TimmBackbone

__all__ = [
    "CLIPResNet",
    "CLIPTimm",
    "CLIPViT",
    "ProjectedBackbone",
    "TimmBackbone",
    "VisualEncoder",
    "build_clip_resnet_backbone",
    "build_clip_vit_backbone",
    "build_visual_encoder",
    "encoder_class",
    "untrained_dense_feature",
]

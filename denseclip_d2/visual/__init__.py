from .clip_resnet import CLIPResNet, build_clip_resnet_backbone

__all__ = ["CLIPResNet", "build_clip_resnet_backbone"]

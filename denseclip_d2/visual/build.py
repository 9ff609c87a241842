from ..clip_models import get_clip_architecture
from .clip_resnet import CLIPResNet
from .clip_vit import CLIPViT

VisualEncoder = CLIPResNet | CLIPViT


def build_visual_encoder(cfg, with_embeddings: bool = True) -> VisualEncoder:
    """The visual encoder of ``MODEL.DENSECLIP.CLIP_MODEL``; both kinds have the same interface.

    Args:
        with_embeddings: False leaves out what makes the dense and global embedding.
    """
    layers = get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL).vision.layers
    kind = CLIPViT if isinstance(layers, int) else CLIPResNet
    return kind(cfg, with_embeddings)

from ..clip_models import CLIPArchitecture, get_clip_architecture
from .clip_resnet import CLIPResNet
from .clip_timm import CLIPTimm
from .clip_vit import CLIPViT

VisualEncoder = CLIPResNet | CLIPViT | CLIPTimm


def build_visual_encoder(cfg, with_embeddings: bool = True) -> VisualEncoder:
    """The visual encoder of ``MODEL.DENSECLIP.CLIP_MODEL``; all kinds have the same interface.

    Args:
        with_embeddings: False leaves out what makes the dense and global embedding.
    """
    return encoder_class(get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL))(cfg, with_embeddings)


def encoder_class(architecture: CLIPArchitecture) -> type[CLIPResNet] | type[CLIPViT] | type[CLIPTimm]:
    """The kind of an architecture's visual encoder."""
    if architecture.vision.timm_model_name:
        return CLIPTimm
    return CLIPViT if isinstance(architecture.vision.layers, int) else CLIPResNet

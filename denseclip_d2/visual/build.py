from ..clip_models import CLIPArchitecture, get_clip_architecture
from .clip_resnet import CLIPResNet
from .clip_timm import CLIPTimm
from .clip_vit import CLIPViT
from .projected_backbone import ProjectedBackbone

VisualEncoder = CLIPResNet | CLIPViT | CLIPTimm | ProjectedBackbone


def build_visual_encoder(cfg, with_embeddings: bool = True, *, with_levels: bool = True) -> VisualEncoder:
    """Build the visual encoder of ``MODEL.DENSECLIP.CLIP_MODEL``, or ``VISUAL.BACKBONE`` in its place.

    Args:
        with_embeddings: False leaves out the layers of the dense and global embedding.
        with_levels: False leaves out the layers that make the pyramid's levels of a ViT, which no CLIP has.
    """
    if cfg.MODEL.DENSECLIP.VISUAL.BACKBONE:
        return ProjectedBackbone(cfg, with_embeddings)
    kind = encoder_class(get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL))
    no_levels = {} if with_levels or kind is CLIPResNet else {"out_features": ()}
    return kind(cfg, with_embeddings, **no_levels)


def untrained_dense_feature(architecture: CLIPArchitecture) -> str:
    """Return the dense feature that is best without training: docs/without_training.md compares them."""
    return "naclip" if encoder_class(architecture) is CLIPViT else "value"


def encoder_class(architecture: CLIPArchitecture) -> type[CLIPResNet] | type[CLIPViT] | type[CLIPTimm]:
    """Return the class of an architecture's visual encoder."""
    if architecture.vision.timm_model_name:
        return CLIPTimm
    return CLIPViT if isinstance(architecture.vision.layers, int) else CLIPResNet

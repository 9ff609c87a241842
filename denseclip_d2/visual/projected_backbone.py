import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from ..clip_models import get_clip_architecture
from .arguments import stage_arguments
from .attention_pool import DenseAttentionPool
from .dense_features import OF_SINGLE_CELLS, DenseAttention, as_map, dense_feature
from .timm_backbone import TIMM, TimmBackbone, create_trunk
from .vit_pyramid import levels_read

HEAD_WIDTH = 64  # of the attention pool, as in CLIP's own
GRID_SIZE = 7  # of its positions, as CLIP has them for images of 224 pixels


class ProjectedBackbone(Backbone):
    """Any backbone, with an embedding into the space of a CLIP's text ("DenseCLIP for any backbone").

    The embedding reads the coarsest feature. Its weights are random at first, and the pixel-text loss aligns
    it with the text. The authors used the attention pool of CLIP's ResNets (their issues 7 and 47); they had
    not tried a linear layer.
    """

    position_key = "embedding.positional_embedding"

    @configurable
    def __init__(
        self,
        backbone: Backbone,
        *,
        embed_dim: int,
        embedding: str = "attention_pool",
        position: str = "interpolate",
        dense: str = "attention",
        grid_size: int = GRID_SIZE,
        with_embeddings: bool = True,
    ):
        """
        Args:
            backbone: of Detectron2, a :class:`TimmBackbone`, or any other.
            embed_dim: C, the width of the text embeddings.
            embedding: "attention_pool", or "linear" on each cell and on the mean of all cells.
            position, dense: of the attention pool, see :class:`DenseAttentionPool`; of the linear embedding,
                ``dense`` is one of :data:`~.dense_features.OF_SINGLE_CELLS`.
            grid_size: side of the pool's grid of positional embeddings, in cells.
            with_embeddings: False leaves the embedding out.

        Raises:
            ValueError: a ``dense`` that the embedding does not have.
        """
        super().__init__()
        self.backbone = backbone
        shapes = backbone.output_shape()
        self.level = max(shapes, key=lambda name: shapes[name].stride)
        width, self.embedding_stride = shapes[self.level].channels, shapes[self.level].stride
        self.embed_dim, self.grid_size = embed_dim, 0
        self.position, self.dense = position, dense
        self.embedding: nn.Module | None = None
        if with_embeddings and embedding == "linear":
            self.feature = dense_feature(dense, OF_SINGLE_CELLS, "a linear embedding")
            self.embedding = nn.Linear(width, embed_dim)
        elif with_embeddings:
            self.grid_size = grid_size
            self.embedding = _attention_pool(grid_size, width, embed_dim, position, dense)

    @classmethod
    def from_config(cls, cfg, with_embeddings: bool = True):
        visual = cfg.MODEL.DENSECLIP.VISUAL
        backbone = build_named_backbone(cfg)
        coarsest = max(shape.stride for shape in backbone.output_shape().values())
        return {
            "backbone": backbone,
            "embed_dim": get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL).embed_dim,
            "embedding": visual.PROJECTION,
            "position": visual.POS_EMBED,
            "dense": visual.DENSE_FEATURES,
            "grid_size": visual.RESOLUTION // coarsest or GRID_SIZE,
            "with_embeddings": with_embeddings,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, 3, H, W), normalized as the backbone takes it.
        Returns: the backbone's features and, with embeddings, ``global_embedding`` (B, C) and
            ``dense_embedding`` (B, C, h, w), of the coarsest feature's stride.
        """
        features = self.backbone(x)
        if self.embedding is None:
            return features
        cells = features[self.level]
        if isinstance(self.embedding, nn.Linear):
            tokens = self.embedding(cells.flatten(2).transpose(1, 2))  # (B, HW, C)
            size = cells.shape[-2:]
            dense = as_map(DenseAttention(self.feature, size).refine(tokens), size)
            return {**features, "global_embedding": tokens.mean(dim=1), "dense_embedding": dense}
        whole, dense = self.embedding(cells)
        return {**features, "global_embedding": whole, "dense_embedding": dense}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self.backbone.output_shape())


def build_named_backbone(cfg) -> Backbone:
    """Build the backbone of ``MODEL.DENSECLIP.VISUAL.BACKBONE``: timm's, or of Detectron2's registry."""
    visual = cfg.MODEL.DENSECLIP.VISUAL
    if not visual.BACKBONE.startswith(TIMM):
        return BACKBONE_REGISTRY.get(visual.BACKBONE)(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    # Some timm models have no such argument.
    dropped = {"drop_path_rate": visual.DROP_PATH_RATE} if visual.DROP_PATH_RATE else {}
    return TimmBackbone(
        create_trunk(visual.BACKBONE.removeprefix(TIMM), **dropped),
        **stage_arguments(cfg),
        out_features=levels_read(cfg.MODEL.FPN.IN_FEATURES),
    )


def _attention_pool(
    grid_size: int, width: int, embed_dim: int, position: str, dense: str
) -> DenseAttentionPool:
    most = max(1, width // HEAD_WIDTH)
    num_heads = next(heads for heads in range(most, 0, -1) if width % heads == 0)
    pool = DenseAttentionPool(grid_size, width, num_heads, embed_dim, position, dense)
    for layer in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
        torch.nn.init.normal_(layer.weight, std=width**-0.5)  # as CLIP's
    return pool

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from open_clip.model import CLIPVisionCfg
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..clip_models import CLIPArchitecture, get_clip_architecture
from ..clip_models.layers import QuickGELU
from .arguments import clip_arguments
from .attention_pool import fit_positions
from .dense_features import DENSE_FEATURES, DenseAttention, MiddleAttention, as_map, dense_feature
from .vit_block import VisualBlock, choose_global_attn_indexes
from .vit_pyramid import (
    LEVELS,
    STRIDES,
    build_scale_layer,
    check_levels,
    levels_read,
    out_indices,
    token_stride,
)

FIELDS = (
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "pool_type", "ls_init_value", "no_ln_pre",
    "final_ln_after_pool",
)  # fmt: skip
"""The arguments that are fields of open_clip's vision config. Architectures with other fields are refused."""
POOLS = ("tok", "avg")


class CLIPViT(VisionTransformer, Backbone):
    """CLIP's vision transformer with a four-level pyramid (released behavior).

    The tokens after 1/3, 1/2, 2/3 and all of the blocks (4, 6, 8 and 12 in ViT-B) are brought to strides 4,
    8, 16 and 32 by transposed convolutions or pooling. Images have any size. They are padded with zeros, at
    the right and the bottom, to a multiple of 32.

    ``embedding_stride`` is the distance of tokens in pixels: the width of a patch, or the nearest power of
    two. It is 16 for L/14, whose images are shrunk by 14/16 so that the patches fit.

    Parameters have the names of CLIP's ``visual``, and those of the pyramid the released names.

    Args:
        layers, width, head_width, mlp_ratio: of the transformer.
        embed_dim: C, the joint embedding's width.
        grid_size: side of the grid of positional embeddings, in cells.
        quick_gelu: use x * sigmoid(1.702 x) as OpenAI's weights need, instead of GELU.
        ls_init_value: initial value of the blocks' layer scales; None leaves them out.
        position: "interpolate" the grid to each image, or "crop" its top left corner.
        dense: how a cell attends in the last block, of :data:`~.dense_features.DENSE_FEATURES`: "attention",
            as released, or "value", without attention, for example.
        norm: the pyramid's, for ``detectron2.layers.get_norm``; "" leaves it out.
        freeze_at: 0 nothing, 1 the embeddings of patches, class and positions, 2 also the blocks before the
            tap of res2, ... 5 all blocks and the layers after them. A frozen block is never dropped.
        drop_path_rate: rate of stochastic depth in the last block; it rises from 0 in the first.
        window_size: side of the attention windows of most blocks, in cells; 0 for none.
        global_attn_indexes: the blocks with global attention, from 0; empty for four, evenly spread.
        double_class_embedding: add the class embedding twice, as released.
        activation_checkpointing: recompute each block in the backward pass.
        with_embeddings: False leaves out the projection to the joint embedding.
        out_features: the levels to build, of ``res2``..``res5``.
        transformer: ``pool_type``, ``no_ln_pre`` and ``final_ln_after_pool`` of open_clip's
            ``VisionTransformer``.

    Raises:
        ValueError: an unknown level, block or ``dense``; windows in blocks whose attention ``dense`` needs.
    """

    position_key = "positional_embedding"
    local_cells = {"out_features": (), "dense": "value"}
    """The arguments that make cells as local as possible, without a level."""

    @configurable
    def __init__(
        self,
        *,
        layers: int,
        width: int,
        head_width: int,
        patch_size: int,
        embed_dim: int,
        grid_size: int,
        mlp_ratio: float = 4.0,
        quick_gelu: bool = False,
        ls_init_value: float | None = None,
        position: str = "interpolate",
        dense: str = "attention",
        norm: str = "SyncBN",
        freeze_at: int = 0,
        drop_path_rate: float = 0.0,
        window_size: int = 0,
        global_attn_indexes: Sequence[int] = (),
        double_class_embedding: bool = False,
        activation_checkpointing: bool = False,
        with_embeddings: bool = True,
        out_features: Sequence[str] = tuple(STRIDES),
        **transformer,
    ):
        side = grid_size * patch_size
        super().__init__(side, patch_size, width, 0, 1, mlp_ratio, output_dim=embed_dim, **transformer)
        gelu = QuickGELU if quick_gelu else nn.GELU
        block = partial(VisualBlock, width, width // head_width, mlp_ratio, ls_init_value, gelu)
        everywhere = choose_global_attn_indexes(layers, global_attn_indexes)
        for i in range(layers):
            window, rate = 0 if i in everywhere else window_size, drop_path_rate * i / max(layers - 1, 1)
            self.transformer.resblocks.append(block(window_size=window, drop_path_rate=rate))
        if not with_embeddings:
            self.ln_post = self.proj = None
        self.position, self.grid_size = position, grid_size
        self.dense, self.embed_dim = dense, embed_dim
        self.feature = dense_feature(dense, DENSE_FEATURES, "a CLIP ViT")
        if self.feature.middle and window_size:
            raise ValueError(
                f"dense is {dense!r}, which needs the global attention of all blocks, and window_size is "
                f"{window_size}. Set window_size to 0, or choose another dense feature."
            )
        self.quick_gelu = quick_gelu
        self.embedding_stride = token_stride(patch_size)
        self.double_class_embedding = double_class_embedding
        self.activation_checkpointing = activation_checkpointing
        self.taps = out_indices(layers)
        self._add_pyramid(out_features, width, norm)
        self._freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg, with_embeddings: bool = True):
        architecture = get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL)
        arguments, visual = cls.arguments_of(architecture), cfg.MODEL.DENSECLIP.VISUAL
        grid_size = visual.RESOLUTION // token_stride(arguments["patch_size"])
        return {
            **arguments,
            **clip_arguments(cfg, with_embeddings),
            "grid_size": grid_size or arguments["grid_size"],
            "position": visual.POS_EMBED,
            "drop_path_rate": visual.DROP_PATH_RATE,
            "window_size": visual.WINDOW_SIZE,
            "global_attn_indexes": visual.GLOBAL_ATTN_INDEXES,
            "double_class_embedding": visual.DOUBLE_CLASS_EMBEDDING,
            "out_features": levels_read(cfg.MODEL.FPN.IN_FEATURES),
        }

    @staticmethod
    def arguments_of(architecture: CLIPArchitecture) -> dict:
        """Return an encoder's arguments that its architecture decides.

        Raises:
            ValueError: the architecture is not a ViT of CLIP's kind.
        """
        vision = architecture.vision
        fields = {name: getattr(vision, name) for name in (*FIELDS, "image_size", "output_tokens")}
        plain = vision == CLIPVisionCfg(**fields) and isinstance(vision.layers, int)
        if not plain or vision.pool_type not in POOLS:
            raise ValueError(
                f"The architecture {architecture.name!r} is not a ViT as CLIP has it. Choose one such as "
                "'ViT-B-16-quickgelu'."
            )
        return {
            **{name: fields[name] for name in FIELDS},
            "embed_dim": architecture.embed_dim,
            "grid_size": vision.image_size // vision.patch_size,
            "quick_gelu": architecture.quick_gelu,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, 3, H, W), RGB, normalized with CLIP's mean and std.
        Returns: ``out_features``, (B, D, H / stride, W / stride), H and W as padded; and, with embeddings,
            ``global_embedding`` (B, C) and ``dense_embedding`` (B, C, h, w) of stride ``embedding_stride``.
        """
        largest = max(STRIDES.values())
        x = F.pad(x, (0, -x.shape[-1] % largest, 0, -x.shape[-2] % largest))
        size = [side // self.embedding_stride for side in x.shape[-2:]]
        tokens, features = self._embed(x, *size), {}
        blocks = self.transformer.resblocks
        middle = MiddleAttention(len(blocks)) if self.feature.middle else None
        with middle or nullcontext():
            for depth, block in enumerate(blocks, start=1):
                before, tokens = tokens, self._run(block, tokens, size)
                for name in self._out_features:
                    if self.taps[name] == depth:
                        features[name] = getattr(self, LEVELS[name])(as_map(tokens[:, 1:], size))
        if self.proj is not None:
            tokens = tokens if self.final_ln_after_pool else self.ln_post(tokens)
            pooled, cells = self._global_pool(tokens)
            if self.final_ln_after_pool:
                pooled, cells = self.ln_post(pooled), self.ln_post(cells)
            attend = DenseAttention(self.feature, size, middle)
            if self.dense != "attention":
                cells = self.ln_post(blocks[-1].densely(before, attend)[:, 1:])
            features["global_embedding"] = pooled @ self.proj  # (B, C)
            features["dense_embedding"] = as_map(attend.refine(cells @ self.proj), size)
        return features

    def _embed(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return the tokens of images, the class token first: (B, 1 + height * width, D)."""
        (patch, _), stride = self.patch_size, self.embedding_stride
        if patch != stride:
            x = F.interpolate(x, (height * patch, width * patch), mode="bilinear", align_corners=False)
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(x.shape[0], 1, -1)
        if self.double_class_embedding:
            class_token = 2 * class_token
        positions = fit_positions(self.positional_embedding, self.grid_size, height, width, self.position)
        return self.ln_pre(torch.cat([class_token, patches], dim=1) + positions)

    def _run(self, block: nn.Module, x: Tensor, size: Sequence[int]) -> Tensor:
        if not (self.activation_checkpointing and self.training):
            return block(x, size)
        return checkpoint(block, x, size, use_reentrant=False)

    def _add_pyramid(self, out_features: Sequence[str], width: int, norm: str) -> None:
        check_levels(out_features, self.taps)
        self._out_features = [name for name in self.taps if name in out_features]
        self._out_feature_channels = dict.fromkeys(self._out_features, width)
        self._out_feature_strides = {name: STRIDES[name] for name in self._out_features}
        for name in self._out_features:
            self.add_module(
                LEVELS[name], build_scale_layer(width, self.embedding_stride / STRIDES[name], norm)
            )

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at > 0:
            for part in (self.conv1, self.class_embedding, self.positional_embedding, self.ln_pre):
                part.requires_grad_(False)
        depth = [0, 0, *self.taps.values()][min(freeze_at, 5)]
        for block in self.transformer.resblocks[:depth]:
            block.requires_grad_(False)
            block.drop_path.p = 0.0
        if freeze_at == 5 and self.proj is not None:
            for part in (self.ln_post, self.proj):
                part.requires_grad_(False)


@BACKBONE_REGISTRY.register()
def build_clip_vit_backbone(cfg, input_shape: ShapeSpec) -> CLIPViT:
    """Build CLIP's ViT with its four levels and its embeddings."""
    return CLIPViT(cfg)

from collections import OrderedDict
from contextlib import nullcontext
from functools import partial

import torch.nn.functional as F
from detectron2.config import configurable
from timm.layers import Mlp, freeze_batch_norm_2d
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..clip_models import CLIPArchitecture, get_clip_architecture
from .arguments import clip_arguments
from .dense_features import (
    DENSE_FEATURES,
    OF_SINGLE_CELLS,
    AttentionMode,
    DenseAttention,
    MiddleAttention,
    as_map,
    dense_feature,
)
from .timm_backbone import TimmBackbone, Trunk, create_trunk
from .vit_pyramid import levels_read

PROJECTIONS = ("linear", "mlp", "none", "", None)
VIT_BLOCKS = (Block, EvaBlock, EvaBlockPostNorm)


class CLIPTimm(TimmBackbone):
    """A CLIP's visual encoder that is a timm model: ConvNeXt, EVA, SigLIP's ViT, FastViT and others.

    The dense embedding of a cell is the output of the model's head for a map of that cell alone. For a head
    that averages, this is norm and projection; for attention pooling, the values of the pool (MaskCLIP, Zhou
    et al., ECCV 2022). If all cells are alike, it is the global embedding. Maps of stride 64, as in
    MobileCLIP2-S3, are enlarged to stride 32, bilinearly.

    Parameters have the names of open_clip's ``visual``.

    Args:
        model_name: timm's.
        embed_dim: C, the joint embedding's width.
        pool: timm's ``global_pool``; empty: the model's own.
        proj: the layers after the pool: "linear" or "mlp"; None: the model's classifier; "none": nothing.
        dense: how a cell attends in the last block, of :data:`~.dense_features.DENSE_FEATURES` in ViTs,
            EVA's and SigLIP's among them; of :data:`~.dense_features.OF_SINGLE_CELLS` in other models.
        drop_path_rate: rate of stochastic depth in the last block; it rises from 0 in the first.
        with_embeddings: False leaves out the layers after the last map.
        stages: ``norm``, ``freeze_at``, ``activation_checkpointing`` and ``out_features`` of
            :class:`TimmBackbone`.

    Raises:
        ValueError: a timm model that cannot be a backbone; another ``dense``.
    """

    position_key, grid_size = None, 0  # timm fits positions to the image itself
    local_cells = {"out_features": ()}
    """The arguments that make cells as local as possible, without a level."""

    @configurable
    def __init__(
        self,
        *,
        model_name: str,
        embed_dim: int,
        pool: str = "avg",
        proj: str | None = "linear",
        proj_bias: bool = False,
        dense: str = "attention",
        drop_path_rate: float = 0.0,
        with_embeddings: bool = True,
        **stages,
    ):
        classes = 0 if proj in ("linear", "mlp", "none") else embed_dim
        pooling = {} if proj in ("linear", "mlp") and not pool else {"global_pool": pool}
        trunk = create_trunk(model_name, num_classes=classes, drop_path_rate=drop_path_rate, **pooling)
        width = trunk.num_features
        self._attends = _is_vit(trunk)
        known = DENSE_FEATURES if self._attends else OF_SINGLE_CELLS
        self.feature = dense_feature(dense, known, f"timm's {type(trunk).__name__}")
        super().__init__(trunk, features_only=not with_embeddings, **stages)
        head: OrderedDict[str, nn.Module] = OrderedDict()
        if with_embeddings and proj == "linear":
            head["proj"] = nn.Linear(width, embed_dim, bias=proj_bias)
        elif with_embeddings and proj == "mlp":
            head["mlp"] = Mlp(width, 2 * embed_dim, embed_dim, bias=(True, proj_bias))
        self.head = nn.Sequential(head)
        self.embed_dim = embed_dim
        self.dense = dense
        if dense != "attention" and with_embeddings and self._attends:
            for block in trunk.blocks:
                block.attn.fused_attn = True  # so that :class:`AttentionMode` sees it
            trunk.blocks[-1].register_forward_pre_hook(self._keep_input, with_kwargs=True)
        if stages.get("freeze_at") == 5:  # also what comes after the last stage
            self.trunk.requires_grad_(False)
            self.head.requires_grad_(False)
            self.trunk = freeze_batch_norm_2d(self.trunk)

    @classmethod
    def from_config(cls, cfg, with_embeddings: bool = True):
        return {
            **cls.arguments_of(get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL)),
            **clip_arguments(cfg, with_embeddings),
            "drop_path_rate": cfg.MODEL.DENSECLIP.VISUAL.DROP_PATH_RATE,
            "out_features": levels_read(cfg.MODEL.FPN.IN_FEATURES),
        }

    @staticmethod
    def arguments_of(architecture: CLIPArchitecture) -> dict:
        """Return an encoder's arguments that its architecture decides.

        Raises:
            ValueError: a pool that timm's models do not have.
        """
        vision = architecture.vision
        if vision.timm_pool in ("abs_attn", "rot_attn") or vision.timm_proj not in PROJECTIONS:
            raise ValueError(
                f"The architecture {architecture.name!r} has the pool {vision.timm_pool!r} and the "
                f"projection {vision.timm_proj!r}, for which no dense embedding is known."
            )
        return {
            "model_name": vision.timm_model_name,
            "embed_dim": architecture.embed_dim,
            "pool": vision.timm_pool,
            "proj": vision.timm_proj,
            "proj_bias": vision.timm_proj_bias,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, 3, H, W), RGB, normalized with the CLIP's mean and std.
        Returns: ``out_features``, (B, D, H / stride, W / stride); and, with embeddings, ``global_embedding``
            (B, C) and ``dense_embedding`` (B, C, h, w) of stride ``embedding_stride``.
        """
        middle = MiddleAttention(len(self.trunk.blocks)) if self.feature.middle else None
        with middle or nullcontext():
            features, last, size = self._features(x)
        if last is not None:
            features["global_embedding"] = self._embed(last)
            attend = DenseAttention(self.feature, size, middle)
            if self._attends and self.dense != "attention":
                last = self._densely(attend)
            dense = self._embed_cells(last, size)
            if self.feature.smooth:
                dense = as_map(attend.refine(dense.flatten(2).transpose(1, 2)), dense.shape[-2:])
            if self.stride > self.embedding_stride:
                fitting = [-(-side // self.embedding_stride) for side in x.shape[-2:]]
                dense = F.interpolate(dense, fitting, mode="bilinear", align_corners=False)
            features["dense_embedding"] = dense
        return features

    def _keep_input(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        self._last_input = args, kwargs

    def _densely(self, attend: DenseAttention) -> Tensor:
        """Return the input of ``forward_head`` with another attention in the last block."""
        block, (args, kwargs) = self.trunk.blocks[-1], self._last_input
        del self._last_input
        with AttentionMode(attend):
            run = block.forward if attend.feature.whole_block else partial(_attention_branch, block)
            return self.trunk.norm(run(*args, **kwargs))

    def _embed(self, x: Tensor) -> Tensor:
        return self.head(self.trunk.forward_head(x))  # (B, C)

    def _embed_cells(self, last: Tensor, size: tuple[int, int]) -> Tensor:
        """Return (B, C, h, w): each cell embedded as if the map had no other."""
        nhwc = last.dim() == 4 and str(getattr(self.trunk, "output_fmt", "NCHW")) == "NHWC"
        if last.dim() == 3:
            others = getattr(self.trunk, "num_prefix_tokens", 0)
            cells = last[:, others:].flatten(0, 1)[:, None]  # (B * h * w, 1, D)
            # The head reads a class token or the mean of the rest: both are this cell.
            alone = cells.expand(-1, others + 1, -1)
        else:
            cells = last if nhwc else last.permute(0, 2, 3, 1)
            size = (cells.shape[1], cells.shape[2])
            alone = cells.flatten(0, 2)[:, None, None]  # (B * h * w, 1, 1, D)
            alone = alone if nhwc else alone.permute(0, 3, 1, 2)
        embedded = self._embed(alone)
        # Not unflatten: torch's ONNX exporter makes its sizes constants.
        return embedded.reshape(-1, *size, embedded.shape[1]).permute(0, 3, 1, 2)


def _is_vit(trunk: Trunk) -> bool:
    blocks = getattr(trunk, "blocks", ())
    return len(blocks) > 0 and all(isinstance(block, VIT_BLOCKS) for block in blocks)


def _attention_branch(block: Trunk, x: Tensor, **options) -> Tensor:
    """Return what a block adds to its input before the MLP."""
    if isinstance(block, EvaBlockPostNorm):
        return block.norm1(block.attn(x, **options))
    x = block.attn(block.norm1(x), **options)
    if isinstance(block, EvaBlock):
        return x if block.gamma_1 is None else block.gamma_1 * x
    return block.ls1(x)

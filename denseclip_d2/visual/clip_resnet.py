from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from open_clip.modified_resnet import Bottleneck, ModifiedResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..clip_models import CLIPArchitecture, get_clip_architecture
from .arguments import clip_arguments
from .attention_pool import DenseAttentionPool

STEM = ["conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "act3", "avgpool"]
"""The layers of the stem."""


class CLIPResNet(ModifiedResNet, Backbone):
    """CLIP's modified ResNet: three-convolution stem, anti-aliased strides, attention pool on every token.

    Parameters have the names of CLIP's ``visual``. Images have any size. Maps of stride s are
    (H // s, W // s).
    """

    stages = {"res2": "layer1", "res3": "layer2", "res4": "layer3", "res5": "layer4"}

    local_cells = {"res5_dilation": 2, "dense": "value"}
    """The arguments that make cells as local as possible."""

    @configurable
    def __init__(
        self,
        *,
        layers: tuple[int, int, int, int],
        width: int,
        head_width: int,
        embed_dim: int,
        resolution: int,
        position: str = "interpolate",
        dense: str = "attention",
        res5_dilation: int = 1,
        norm: str = "SyncBN",
        freeze_at: int = 0,
        activation_checkpointing: bool = False,
        with_embeddings: bool = True,
    ):
        """
        Args:
            layers, width: blocks of each stage, and channels after the stem.
            embed_dim: C, the joint embedding's width.
            resolution: side, in pixels, of the image that the grid of positional embeddings is for.
            position, dense: see :class:`DenseAttentionPool`.
            res5_dilation: 1, as in CLIP, or 2, which leaves out the pooling of res5 and dilates the
                convolutions after it. The dense embedding then has stride 16, and res5 is the mean of 2 x 2
                cells.
            norm: the name of a norm for ``detectron2.layers.get_norm``.
            freeze_at: stages to freeze: 0 none, 1 the stem, 2 the stem and res2, ... 5 all, and the attention
                pool.
            activation_checkpointing: recompute half of the activations in the backward pass: :meth:`_run`.
            with_embeddings: False leaves out the attention pool.
        """
        channels, num_heads = width * 32, width * 32 // head_width
        super().__init__(layers, embed_dim, num_heads, resolution, width)
        self.attnpool = None
        if with_embeddings:
            self.attnpool = DenseAttentionPool(
                resolution // 32, channels, num_heads, embed_dim, position, dense
            )
            self.init_parameters()
        if res5_dilation == 2:
            self._dilate(2)
        self.res5_dilation = res5_dilation
        self.embedding_stride = 32 // res5_dilation
        _replace_norm(self, norm)
        self.embed_dim = embed_dim
        self.activation_checkpointing = activation_checkpointing
        self._out_features = list(self.stages)
        self._out_feature_channels = {name: width * 4 * 2**i for i, name in enumerate(self.stages)}
        self._out_feature_strides = {name: 4 * 2**i for i, name in enumerate(self.stages)}
        self._freeze(freeze_at)

    @property
    def position_key(self) -> str | None:
        """The name of the positional embedding in the state dict; None without embeddings."""
        return None if self.attnpool is None else "attnpool.positional_embedding"

    @property
    def grid_size(self) -> int:
        """The side of the grid of positional embeddings, in cells; 0 without embeddings."""
        return 0 if self.attnpool is None else self.attnpool.grid_size

    @classmethod
    def from_config(cls, cfg, with_embeddings: bool = True):
        architecture = get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL)
        arguments, visual = cls.arguments_of(architecture), cfg.MODEL.DENSECLIP.VISUAL
        return {
            **arguments,
            **clip_arguments(cfg, with_embeddings),
            "resolution": visual.RESOLUTION or arguments["resolution"],
            "position": visual.POS_EMBED,
            "res5_dilation": visual.RES5_DILATION,
        }

    @staticmethod
    def arguments_of(architecture: CLIPArchitecture) -> dict:
        """Return an encoder's arguments that its architecture decides.

        Raises:
            ValueError: the architecture is not a CLIP ResNet.
        """
        vision = architecture.vision
        if vision.timm_model_name or isinstance(vision.layers, int):
            raise ValueError(
                f"The architecture {architecture.name!r} is not a CLIP ResNet. Choose one such as "
                "'RN50-quickgelu'."
            )
        return {
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.head_width,
            "embed_dim": architecture.embed_dim,
            "resolution": vision.image_size,
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, 3, H, W), RGB, normalized with CLIP's mean and std.
        Returns: ``res2``..``res5`` and, with embeddings, ``global_embedding`` (B, C) and
            ``dense_embedding`` (B, C, H // embedding_stride, W // embedding_stride).
        """
        features, stages = {}, dict(self.stages)
        if self._recomputes:
            # Their strides are the finest: what they would keep is half of what the encoder would.
            x = features["res2"] = _recomputed([*(getattr(self, name) for name in STEM), *self.layer1], x)
            del stages["res2"]
        else:
            x = self.stem(x)
        for name, layer in stages.items():
            for block in getattr(self, layer):
                x = self._run(block, x)
            features[name] = x
        if self.attnpool is not None:
            features["global_embedding"], features["dense_embedding"] = self.attnpool(x)
        if self.res5_dilation > 1:
            features["res5"] = F.avg_pool2d(x, self.res5_dilation)
        return features

    def _run(self, block: Bottleneck, x: Tensor) -> Tensor:
        """Run a bottleneck as open_clip does.

        With checkpointing, the backward pass recomputes norms, activations and all 1 x 1 convolutions but the
        first. The outputs of two convolutions remain, and the block's own.
        """
        if not self._recomputes:
            return block(x)
        inner = block.conv1(x)
        inner = _recomputed([block.bn1, block.act1, block.conv2], inner)
        inner = _recomputed([block.bn2, block.act2, block.avgpool, block.conv3, block.bn3], inner)
        inner += x if block.downsample is None else _recomputed([block.downsample], x)
        return block.act3(inner)

    @property
    def _recomputes(self) -> bool:
        return self.activation_checkpointing and self.training

    def _dilate(self, dilation: int) -> None:
        """Leave out the pooling of res5, and dilate the convolutions after it; with 1, undo that."""
        first, *others = self.layer4
        for pooling in ("avgpool", "downsample.-1"):
            first.set_submodule(pooling, nn.Identity() if dilation == 2 else nn.AvgPool2d(2))
        for block in others:
            convolution = block.get_submodule("conv2")
            assert isinstance(convolution, nn.Conv2d)
            convolution.dilation = convolution.padding = (dilation, dilation)

    def _freeze(self, freeze_at: int) -> None:
        groups = [STEM, *([layer] for layer in self.stages.values())]
        if self.attnpool is not None:
            groups[-1].append("attnpool")
        for name in sum(groups[:freeze_at], []):
            getattr(self, name).requires_grad_(False)
            setattr(self, name, FrozenBatchNorm2d.convert_frozen_batchnorm(getattr(self, name)))


def _recomputed(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Run layers, and keep ``x`` for the backward pass in place of what the layers keep.

    The backward pass recomputes what it needs: the last layer runs again only if it keeps its own output.
    """
    run = nn.Sequential(*layers)
    return checkpoint(
        run, x, use_reentrant=False, preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _running_statistics_kept(run)),
    )  # fmt: skip


@contextmanager
def _running_statistics_kept(layers: nn.Module):
    """Restore the statistics of norms, for recomputed layers must not count their batch a second time."""
    norms = [m for m in layers.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    counts = [buffer for name, buffer in layers.named_buffers() if name.endswith("num_batches_tracked")]
    kept = [count.clone() for count in counts]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for count, before in zip(counts, kept, strict=True):
            count.copy_(before)


@contextmanager
def undilated(visual: nn.Module) -> Iterator[None]:
    """Give a visual encoder CLIP's own strides for a while, which the global embedding was trained with."""
    if not isinstance(visual, CLIPResNet) or visual.res5_dilation == 1:
        yield
        return
    visual._dilate(1)
    try:
        yield
    finally:
        visual._dilate(2)


def _replace_norm(module: nn.Module, norm: str) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            replacement = get_norm(norm, child.num_features)
            # CLIP initializes the last norm of each block with zero weights.
            replacement.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, replacement)
        else:
            _replace_norm(child, norm)


@BACKBONE_REGISTRY.register()
def build_clip_resnet_backbone(cfg, input_shape: ShapeSpec) -> CLIPResNet:
    """Build CLIP's ResNet with its embeddings, without a pyramid."""
    return CLIPResNet(cfg)

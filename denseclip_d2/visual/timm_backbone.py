from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from timm.layers import DropPath, convert_sync_batchnorm, freeze_batch_norm_2d
from timm.models import group_parameters
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .vit_pyramid import LEVELS, STRIDES, build_scale_layer, check_levels, out_indices, token_stride

TIMM = "timm/"
"""The prefix by which ``MODEL.DENSECLIP.VISUAL.BACKBONE`` names a model of timm."""
TIMM_WEIGHTS = "timm://"
"""The prefix by which ``MODEL.DENSECLIP.VISUAL.WEIGHTS`` names weights of timm."""

Trunk = Any
"""A timm model. torch's ``Module`` has no types for its attributes."""

PROBE_SIZES = (96, 160)
"""Height and width of the image that a model is tried on: odd numbers of cells, unlike in its training."""


class TimmBackbone(Backbone):
    """Any timm model with intermediate maps, as ``res2``..``res5`` of strides 4, 8, 16 and 32.

    In a model with stages, a level is the last map of its stride. If all maps have one stride, as in a ViT,
    the maps after 1/3, 1/2, 2/3 and all of the blocks are brought to the four strides as in
    :class:`CLIPViT`. Images are then padded with zeros, at the right and the bottom, to a multiple of 32,
    and shrunk by 14/16 for patches of 14 pixels.

    The model is ``trunk``, and its parameters have the names that timm gives them.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        norm: str = "SyncBN",
        freeze_at: int = 0,
        activation_checkpointing: bool = False,
        features_only: bool = True,
        out_features: Sequence[str] = tuple(STRIDES),
    ):
        """
        Args:
            trunk: of :func:`create_trunk`.
            norm: "BN", "SyncBN" or "FrozenBN", for batch norms of the model and for a ViT's pyramid.
            freeze_at: 0 nothing, 1 the stem, 2 all layers up to res2's map, ... 5 up to res5's map.
            activation_checkpointing: recompute blocks in the backward pass.
            features_only: leave out the layers after the last map.
            out_features: the levels to return, of ``res2``..``res5``.

        Raises:
            ValueError: an unknown level; a norm, frozen stages, activation checkpointing or image sizes that
                the model does not support.
        """
        super().__init__()
        self.features_only = features_only
        self._set_levels(trunk, out_features)
        whole = set(trunk.state_dict())
        if features_only:
            trunk.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)
        self.left_out = {f"trunk.{name}" for name in whole.difference(trunk.state_dict())}
        self.trunk = _with_norm(trunk, norm)
        self._freeze(freeze_at)
        if activation_checkpointing:
            self._checkpoint_activations()
        if self.plain:
            for name in self._out_features:
                width, factor = self._out_feature_channels[name], self.embedding_stride / STRIDES[name]
                self.add_module(LEVELS[name], build_scale_layer(width, factor, norm))
        self._check_output_shapes()

    def _set_levels(self, trunk: Trunk, out_features: Sequence[str]) -> None:
        """Find the maps, the channels and the strides of the levels."""
        strides = [stage["reduction"] for stage in trunk.feature_info]
        last_of = {stride: i for i, stride in enumerate(strides)}
        self.plain = len(last_of) == 1 and len(strides) > 1
        if self.plain:
            self.stages = {name: depth - 1 for name, depth in out_indices(len(strides)).items()}
            self.embedding_stride = token_stride(strides[-1])
        else:
            self.stages = {name: last_of[stride] for name, stride in STRIDES.items() if stride in last_of}
            self.embedding_stride = min(strides[-1], max(STRIDES.values()))
        check_levels(out_features, self.stages, f"timm's {type(trunk).__name__}")
        self._out_features = [name for name in self.stages if name in out_features]
        maps = {name: self.stages[name] for name in self._out_features}
        self._out_feature_channels = {name: trunk.feature_info[i]["num_chs"] for name, i in maps.items()}
        self._out_feature_strides = {name: STRIDES[name] for name in self._out_features}
        # The last map, even if it is no level, has the size of the head's input.
        last = () if self.features_only else (len(strides) - 1,)
        self.indices = sorted({*maps.values(), *last})
        self.stride = strides[-1]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, 3, H, W), normalized.
        Returns: ``out_features``, (B, D, H / stride, W / stride).
        """
        return self._features(x)[0]

    def _features(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor | None, tuple[int, int]]:
        """Return the features, the input of ``forward_head`` unless ``features_only``, and its map's size."""
        if self.plain:
            x = self._fitted(x)
        options = {"norm": False, "output_fmt": "NCHW", "indices": self.indices}
        last = None
        if self.features_only:
            options |= {"intermediates_only": True, "stop_early": True}
            maps = self.trunk.forward_intermediates(x, **options)
        else:
            last, maps = self.trunk.forward_intermediates(x, **options)
        at = dict(zip(self.indices, maps, strict=True))
        features = {name: at[self.stages[name]] for name in self._out_features}
        if self.plain:
            features = {name: getattr(self, LEVELS[name])(map_) for name, map_ in features.items()}
        return features, last, (maps[-1].shape[-2], maps[-1].shape[-1])

    def _fitted(self, x: Tensor) -> Tensor:
        """Return images padded to whole cells, and resized so that the trunk's patches fill the cells."""
        largest = max(STRIDES.values())
        x = F.pad(x, (0, -x.shape[-1] % largest, 0, -x.shape[-2] % largest))
        if self.stride != self.embedding_stride:
            size = [side // self.embedding_stride * self.stride for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x

    def _check_output_shapes(self) -> None:
        """Run the trunk once, and refuse it if a map does not have the size of its stride."""
        height, width = PROBE_SIZES
        image = torch.zeros(1, 3, height, width, device=next(self.trunk.parameters()).device)
        self.eval()
        try:
            with torch.no_grad():
                features = self._features(image)[0]
        except Exception as error:  # timm's models raise any error at an image size they do not support
            raise ValueError(
                f"timm's {type(self.trunk).__name__} cannot be a backbone. It does not support images of any "
                f"size ({str(error) or type(error).__name__})."
            ) from error
        self.train()
        for name, stride in self._out_feature_strides.items():
            size, expected = tuple(features[name].shape[-2:]), (-(-height // stride), -(-width // stride))
            if size != expected:
                raise ValueError(
                    f"timm's {type(self.trunk).__name__} cannot be a backbone. For {height} x {width} "
                    f"pixels, its {name} is {size} instead of {expected}."
                )

    def _freeze(self, freeze_at: int) -> None:
        if not freeze_at:
            return
        wanted = list(STRIDES)[: freeze_at - 1]
        # The last of these levels that the model has.
        frozen = [i for name, i in self.stages.items() if name in wanted and i <= max(self.indices)]
        stage = f"{self.trunk.feature_info[frozen[-1]]['module']}." if frozen else ""
        try:
            group_of = group_parameters(self.trunk, self.trunk.group_matcher(coarse=True), reverse=True)
            last = max(group for name, group in group_of.items() if name.startswith(stage)) if stage else 0
        except (AttributeError, AssertionError, ValueError) as error:  # no groups, or not of this stage
            raise ValueError(
                f"freeze_at is {freeze_at}; timm does not tell the parameters of these stages of "
                f"{type(self.trunk).__name__}. Set it to 0."
            ) from error
        for name, parameter in self.trunk.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and group_of[name] > last)
        for name, module in list(self.trunk.named_modules()):
            parent = self.trunk.get_submodule(name.rpartition(".")[0])
            block = module if isinstance(module, _BatchNorm) else parent
            if any(p.requires_grad for p in block.parameters()):
                continue
            if isinstance(module, _BatchNorm):
                self.trunk.set_submodule(name, freeze_batch_norm_2d(module))
            elif isinstance(module, DropPath):
                module.drop_prob = 0.0  # a frozen block is never dropped

    def _checkpoint_activations(self) -> None:
        if any(isinstance(module, _BatchNorm) for module in self.trunk.modules()):
            raise ValueError(
                "activation_checkpointing would count each batch twice in the batch norms of timm's "
                f"{type(self.trunk).__name__}. Set it to False, or norm to 'FrozenBN'."
            )
        try:
            self.trunk.set_grad_checkpointing(True)
        except AssertionError as error:  # timm's refusal
            raise ValueError(
                f"timm's {type(self.trunk).__name__} has no activation checkpointing. Set "
                "activation_checkpointing to False."
            ) from error


def check_timm_model(name: str) -> None:
    """See that timm has a model, and the tag if there is one in the name.

    Raises:
        ValueError: it has not.
    """
    architecture = name.partition(".")[0]
    if not timm.is_model(name):
        near = timm.list_models(f"*{architecture.split('_')[0]}*")[:4]
        raise ValueError(
            f"timm has no model {name!r}. Near it: {', '.join(near) or 'none'}; timm.list_models() has all."
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # how timm refuses a tag
        tags = timm.list_pretrained(f"{architecture}.*")
        raise ValueError(
            f"timm's {architecture!r} has no weights {name!r}. It has: {', '.join(tags) or 'none'}."
        ) from error


def create_trunk(name: str, **kwargs) -> Trunk:
    """Build a timm model with random weights that takes images of any size.

    Args:
        kwargs: as for ``timm.create_model``.

    Raises:
        ValueError: the model takes images of one size, has no intermediate maps, or does not take ``kwargs``.
        RuntimeError: timm has no such model.
    """
    try:
        trunk = timm.create_model(name, dynamic_img_size=True, **kwargs)
    except TypeError:  # models without positions take any size, and no such argument
        try:
            trunk = timm.create_model(name, **kwargs)
        except TypeError as error:
            raise ValueError(
                f"timm cannot build {name!r} with {kwargs}: {error}. Set drop_path_rate to 0 for a model "
                "without stochastic depth."
            ) from error
    embed = getattr(trunk, "patch_embed", None)
    if not hasattr(trunk, "forward_intermediates") or getattr(embed, "strict_img_size", False):
        raise ValueError(f"timm's {name!r} takes images of one size alone, or has no intermediate maps.")
    return trunk


def _with_norm(trunk: Trunk, norm: str) -> Trunk:
    if not any(isinstance(module, _BatchNorm) for module in trunk.modules()) or norm == "BN":
        return trunk
    if norm not in ("SyncBN", "FrozenBN"):
        raise ValueError(
            f"norm is {norm!r}, and timm's {type(trunk).__name__} has batch norms. Use 'BN', 'SyncBN' or "
            "'FrozenBN'."
        )
    return convert_sync_batchnorm(trunk) if norm == "SyncBN" else freeze_batch_norm_2d(trunk)

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

from .vit_pyramid import LEVELS, STRIDES, check_levels, resampling, taps_of, token_stride

TIMM = "timm/"
"""The prefix by which ``MODEL.DENSECLIP.VISUAL.BACKBONE`` names a model of timm."""
TIMM_WEIGHTS = "timm://"
"""The prefix by which ``MODEL.DENSECLIP.VISUAL.WEIGHTS`` names weights of timm."""

Trunk = Any
"""A model of timm's, whose attributes torch's ``Module`` has no types for."""

TRIED = (96, 160)
"""Height and width of the image that a model is tried on: odd numbers of cells, and not as it was trained."""


class TimmBackbone(Backbone):
    """Any model of timm's that gives intermediate maps, as ``res2``..``res5`` of strides 4, 8, 16 and 32.

    Of a model with stages, a level is the last map of its stride. Of one whose maps all have one stride, a
    ViT say, the maps after 1/3, 1/2, 2/3 and all of the blocks are brought to the four strides, as
    :class:`CLIPViT` does it; images are padded with zeros, at the right and the bottom, to a multiple of 32,
    and shrunk by 14/16 where patches have 14 pixels.

    The model is ``trunk``, and its parameters keep the names that timm gives them.
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
            norm: "BN", "SyncBN" or "FrozenBN", for the batch norms it may have, and a ViT's pyramid.
            freeze_at: 0 nothing, 1 the stem, 2 the stem and all up to res2's map, ... 5 and up to res5's.
            activation_checkpointing: recompute blocks in the backward pass, where timm can.
            features_only: leave out what comes after the last map.
            out_features: the levels to give, of ``res2``..``res5``.

        Raises:
            ValueError: a level that it has not; a norm, frozen stages or checkpointed activations that it
                cannot take; images of some sizes that it cannot take.
        """
        super().__init__()
        strides = [stage["reduction"] for stage in trunk.feature_info]
        last_of = {stride: i for i, stride in enumerate(strides)}
        self.plain = len(last_of) == 1 and len(strides) > 1
        if self.plain:
            stages = {name: depth - 1 for name, depth in taps_of(len(strides)).items()}
            self.embedding_stride = token_stride(strides[-1])
        else:
            stages = {name: last_of[stride] for name, stride in STRIDES.items() if stride in last_of}
            self.embedding_stride = min(strides[-1], max(STRIDES.values()))
        check_levels(out_features, stages, f"timm's {type(trunk).__name__}")
        self._out_features = [name for name in stages if name in out_features]
        self._out_feature_channels = {
            name: trunk.feature_info[stages[name]]["num_chs"] for name in self._out_features
        }
        self._out_feature_strides = {name: STRIDES[name] for name in self._out_features}
        # The last map, given or not, tells the size of what the head takes.
        last = () if features_only else (len(strides) - 1,)
        self.indices = sorted({*(stages[name] for name in self._out_features), *last})
        self.stages, self.stride = stages, strides[-1]
        self.features_only = features_only
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
                self.add_module(LEVELS[name], resampling(width, factor, norm))
        self._try()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, 3, H, W), normalized.
        Returns: ``out_features``, (B, D, H / stride, W / stride).
        """
        return self._features(x)[0]

    def _features(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor | None, tuple[int, int]]:
        """The features; what ``forward_head`` takes, unless ``features_only``; and its height and width."""
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
        """Images padded to whole cells, and resized so that patches as wide as the trunk's fill them."""
        largest = max(STRIDES.values())
        x = F.pad(x, (0, -x.shape[-1] % largest, 0, -x.shape[-2] % largest))
        if self.stride != self.embedding_stride:
            size = [side // self.embedding_stride * self.stride for side in x.shape[-2:]]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return x

    def _try(self) -> None:
        """Refuse a trunk whose maps have not the sizes of their strides, as only a forward pass tells."""
        height, width = TRIED
        image = torch.zeros(1, 3, height, width, device=next(self.trunk.parameters()).device)
        self.eval()
        try:
            with torch.no_grad():
                features = self._features(image)[0]
        except Exception as error:  # of a size that they were not built for, timm's models raise anything
            raise ValueError(
                f"timm's {type(self.trunk).__name__} is no backbone: it does not take images of any size "
                f"({str(error) or type(error).__name__})."
            ) from error
        self.train()
        for name, stride in self._out_feature_strides.items():
            size, expected = tuple(features[name].shape[-2:]), (-(-height // stride), -(-width // stride))
            if size != expected:
                raise ValueError(
                    f"timm's {type(self.trunk).__name__} is no backbone: of {height} x {width} pixels, its "
                    f"{name} is {size}, not {expected}."
                )

    def _freeze(self, freeze_at: int) -> None:
        if not freeze_at:
            return
        wanted = list(STRIDES)[: freeze_at - 1]
        # Of these levels the last that the model has, and that was not left out.
        frozen = [i for name, i in self.stages.items() if name in wanted and i <= max(self.indices)]
        stage = f"{self.trunk.feature_info[frozen[-1]]['module']}." if frozen else ""
        try:
            group_of = group_parameters(self.trunk, self.trunk.group_matcher(coarse=True), reverse=True)
            last = max(group for name, group in group_of.items() if name.startswith(stage)) if stage else 0
        except (AttributeError, AssertionError, ValueError) as error:  # how it has no groups, or no stage
            raise ValueError(
                f"MODEL.DENSECLIP.VISUAL.FREEZE_AT is {freeze_at}; timm does not tell which parameters of "
                f"{type(self.trunk).__name__} that is. Set it to 0."
            ) from error
        for name, parameter in self.trunk.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and group_of[name] > last)
        for name, module in list(self.trunk.named_modules()):
            parent = self.trunk.get_submodule(name.rpartition(".")[0])
            if any(
                p.requires_grad for p in (module if isinstance(module, _BatchNorm) else parent).parameters()
            ):
                continue
            if isinstance(module, _BatchNorm):
                self.trunk.set_submodule(name, freeze_batch_norm_2d(module))
            elif isinstance(module, DropPath):
                module.drop_prob = 0.0  # a frozen block is never dropped

    def _checkpoint_activations(self) -> None:
        if any(isinstance(module, _BatchNorm) for module in self.trunk.modules()):
            raise ValueError(
                "MODEL.DENSECLIP.VISUAL.ACTIVATION_CHECKPOINTING would count each batch twice in the batch "
                f"norms of timm's {type(self.trunk).__name__}. Set it to False, or VISUAL.NORM to 'FrozenBN'."
            )
        try:
            self.trunk.set_grad_checkpointing(True)
        except AssertionError as error:  # how timm's models refuse
            raise ValueError(
                "MODEL.DENSECLIP.VISUAL.ACTIVATION_CHECKPOINTING is True, and timm's "
                f"{type(self.trunk).__name__} cannot. Set it to False."
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
    """A model of timm's, with random weights, that takes images of any size.

    Args:
        kwargs: as for ``timm.create_model``.

    Raises:
        ValueError: timm has no such model, or it gives no intermediate maps, or takes one size only, or does
            not take one of ``kwargs``.
    """
    check_timm_model(name)
    try:
        trunk = timm.create_model(name, dynamic_img_size=True, **kwargs)
    except TypeError:  # a model without positions takes any size, and no such argument
        try:
            trunk = timm.create_model(name, **kwargs)
        except TypeError as error:
            raise ValueError(
                f"timm's {name!r} is not built with {kwargs}: {error}. Where it knows no stochastic depth, "
                "set MODEL.DENSECLIP.VISUAL.DROP_PATH_RATE to 0."
            ) from error
    embed = getattr(trunk, "patch_embed", None)
    if not hasattr(trunk, "forward_intermediates") or getattr(embed, "strict_img_size", False):
        raise ValueError(f"timm's {name!r} takes images of one size alone, or gives no intermediate maps.")
    return trunk


def _with_norm(trunk: Trunk, norm: str) -> Trunk:
    if not any(isinstance(module, _BatchNorm) for module in trunk.modules()) or norm == "BN":
        return trunk
    if norm not in ("SyncBN", "FrozenBN"):
        raise ValueError(
            f"MODEL.DENSECLIP.VISUAL.NORM is {norm!r}; timm's {type(trunk).__name__} has batch norms: 'BN', "
            "'SyncBN' or 'FrozenBN'."
        )
    return convert_sync_batchnorm(trunk) if norm == "SyncBN" else freeze_batch_norm_2d(trunk)

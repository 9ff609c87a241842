"""Batch norms made part of the convolutions before them, where weights are no longer learnt."""

from collections.abc import Iterator
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from open_clip.modified_resnet import Bottleneck, ModifiedResNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

Norm = _BatchNorm | FrozenBatchNorm2d


def fuse_norms(model: nn.Module) -> None:
    """Fuse, in place, the batch norms of CLIP's ResNets, of Detectron2's convolutions and of sequences.

    Outputs are the same to rounding. Other norms stay: they depend on the image, or it is timm's forward
    pass that knows what is before them.

    Args:
        model: in evaluation mode; its weights have other names and values afterwards.
    """
    assert not model.training, "a norm that still learns cannot be fused"
    for module in list(model.modules()):
        for convolution, norm in _pairs(module):
            _fuse(module.get_submodule(convolution), module.get_submodule(norm))
            module.set_submodule(norm, nn.Identity())
        if isinstance(module, Conv2d) and isinstance(module.norm, Norm):
            _fuse(module, module.norm)
            module.norm = None


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a module's convolutions and of the norms that take what they give."""
    if isinstance(module, ModifiedResNet | Bottleneck):
        names = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
    elif isinstance(module, nn.Sequential):
        children = [name for name, _ in module.named_children()]
        names = list(zip(children, children[1:], strict=False))
    else:
        return
    for convolution, norm in names:
        before, after = module.get_submodule(convolution), module.get_submodule(norm)
        # Detectron2's own may have an activation in between.
        plain = isinstance(before, nn.Conv2d | nn.ConvTranspose2d) and not isinstance(before, Conv2d)
        if plain and isinstance(after, Norm):
            yield convolution, norm


@torch.no_grad()
def _fuse(convolution: Any, norm: Any) -> None:
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias, transpose=isinstance(convolution, nn.ConvTranspose2d),
    )  # fmt: skip

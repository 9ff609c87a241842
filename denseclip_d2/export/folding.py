"""Norms folded into convolutions, for compilers of ``torch.export`` files."""

import copy
from itertools import pairwise
from typing import Any

import torch
from detectron2.layers.batch_norm import CycleBatchNormList
from torch import Tensor, nn

from ..builder import fuse_layers


class _ByLevel(nn.ModuleList):
    """One module for each level of a pyramid, in turns."""

    level = 0

    def forward(self, x: Tensor) -> Tensor:
        module = self[self.level]
        self.level = (self.level + 1) % len(self)
        return module(x)


@torch.no_grad()
def folded(whole: nn.Module) -> nn.Module:
    """Return a copy with norms fused into convolutions and contiguous weights.

    A convolution that several levels share, each with its own norm, becomes one for each level. ExecuTorch
    folds one of these norms into all; litert-torch takes channels-last weights for contiguous ones.
    """
    whole = copy.deepcopy(whole)
    for sequence in [x for x in whole.modules() if isinstance(x, nn.Sequential)]:
        for i, (layer, norms) in enumerate(pairwise(list(sequence))):
            if isinstance(norms, CycleBatchNormList):
                sequence[i] = _ByLevel(
                    nn.Sequential(copy.deepcopy(layer), _with_affine(x, norms)) for x in norms
                )
                sequence[i + 1] = nn.Identity()
    whole.eval()
    fuse_layers(whole)
    for tensor in (*whole.parameters(), *whole.buffers()):
        # contiguous() keeps the strides of a 1x1 convolution, by which its output would be channels-last.
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return whole


def _with_affine(norm: Any, norms: Any) -> nn.Module:
    """Return the norm of a level with the scale and shift that all levels share."""
    norm = copy.deepcopy(norm)
    if norms._affine:
        norm.weight, norm.bias = copy.deepcopy(norms.weight), copy.deepcopy(norms.bias)
    return norm

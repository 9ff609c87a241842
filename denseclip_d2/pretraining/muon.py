from collections.abc import Iterable

import torch
from torch import nn


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al., 2024), for convolutions too: a kernel is a matrix of a row per output."""

    def __init__(self, parameters: Iterable[nn.Parameter], **settings):
        """
        Args:
            parameters: of two dimensions or more, contiguous, on their final device.
            settings: as for torch's.
        """
        self._whole = list(parameters)
        super().__init__([nn.Parameter(p.detach().flatten(1)) for p in self._whole], **settings)

    def step(self, closure=None):
        for matrix, whole in zip(self.param_groups[0]["params"], self._whole, strict=True):
            matrix.grad = None if whole.grad is None else whole.grad.flatten(1)
        return super().step(closure)

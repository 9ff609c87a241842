import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..language.prompts import plain_name


class TextClassifier(nn.Module):
    """Class logits as scaled cosine similarities with text embeddings, in place of K learned weight vectors.

    The weights of the classes are their text embeddings. One classifier therefore takes any names, in any
    number, also at test time.
    """

    background: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        *,
        background: bool = False,
        scale: float = 10.0,
        prior: float = 0.0,
        biased_names: Sequence[str] = (),
    ):
        """
        Args:
            embed_dim: C, the width of the text embeddings.
            background: append a class with a learned embedding.
            scale: initial factor of the cosine similarities. It is learned.
            prior: initial probability of each class, for sigmoid losses. It sets a learned bias. 0: no bias.
            biased_names: K names with a learned bias each, 0 at first. The text has these names until
                :meth:`set_names` gives others.
        """
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        learned = nn.init.normal_(torch.empty(embed_dim), std=embed_dim**-0.5)
        self.register_parameter("background", nn.Parameter(learned) if background else None)
        bias = torch.tensor(math.log(prior / (1 - prior))) if prior else None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.name_bias = NameBias(biased_names) if biased_names else None
        self.weights: Tensor | None = None

    def set_names(self, names: Sequence[str], weights: Tensor | None = None) -> None:
        """Take text embeddings of these names from now on, which find their biases.

        Args:
            weights: (K,) see :func:`sampled_softmax_logits`; None: each name stands for itself.
        """
        self.weights = weights
        if self.name_bias is not None:
            self.name_bias.set_names(names)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """
        Args:
            x: (B, C, ...) visual embeddings.
            text: (B or 1, K, C) text embeddings.
        Returns: (B, K, ...) logits; K + 1 with a background class, which is the last.
        """
        if self.background is not None:
            background = self.background.to(text.dtype).expand(text.shape[0], 1, -1)
            text = torch.cat([text, background], dim=1)
        text = F.normalize(text, dim=-1).expand(x.shape[0], -1, -1)
        logits = self.log_scale.exp() * torch.einsum("bkc,bc...->bk...", text, F.normalize(x, dim=1))
        if self.bias is not None:
            logits = logits + self.bias
        if self.name_bias is not None:
            biases = F.pad(self.name_bias(), (0, int(self.background is not None))).to(logits.dtype)
            logits = logits + biases.view(-1, *[1] * (logits.dim() - 2))
        if self.weights is not None and self.bias is None:
            weights = F.pad(self.weights, (0, int(self.background is not None)), value=1)
            logits = sampled_softmax_logits(logits, weights)
        return logits


def sampled_softmax_logits(logits: Tensor, weights: Tensor, tau: float = 1.0) -> Tensor:
    """Return logits of some names for a softmax in which they stand for all names.

    tau * log(weight) is added. If each of n steps draws a part of the names and a drawn name stands for n,
    the sum of the exponentials has the expectation of that over all names (sampled softmax, Jean et al., ACL
    2015). In a sigmoid loss, names do not compete: each stands for itself, as in a federated loss.

    Args:
        logits: (B, K, ...).
        weights: (K,) how many names each stands for.
        tau: temperature by which the logits are divided later.
    """
    return logits + tau * weights.to(logits).log().view(-1, *[1] * (logits.dim() - 2))


class NameBias(nn.Module):
    """A learned number for each name of the training, from 0 on. Other names have 0."""

    index: Tensor

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = tuple(names)
        self.bias = nn.Parameter(torch.zeros(len(names)))
        self.set_names(names)

    def set_names(self, names: Sequence[str]) -> None:
        """Return the numbers of these names from now on."""
        known = {plain_name(name): i for i, name in enumerate(self.names)}
        index = torch.tensor([known.get(plain_name(name), len(known)) for name in names])
        with torch.inference_mode(False):  # training may follow
            index = index.to(self.bias.device, copy=True)
        self.register_buffer("index", index, persistent=False)

    def forward(self) -> Tensor:
        """Return (K,) numbers of the names that were set last."""
        return F.pad(self.bias, (0, 1))[self.index]

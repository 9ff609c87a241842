"""The projection by which a sentence encoder embeds names where an image classifier embeds images."""

import torch
import torch.nn.functional as F
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from torch import Tensor

TEMPLATE = "a photo of a {}."
"""The sentence of a name, in the alignment and at test time."""
IMAGENET = tuple(IMAGENET_CLASSNAMES)
"""The names of the classes of ImageNet-1k, in the order of a classifier's rows."""

COSINE, WIDTH, RIDGE = 0.4, 0.2, 10.0
"""Cosine at which a hidden unit is half open, the width of its opening, and the ridge for 1000 classes."""
_BIAS_RIDGE = 1e-6


def hidden_width(sentence_width: int, embed_dim: int) -> int:
    """Return the number of hidden units that open_clip's ``mlp`` projection of a text encoder has."""
    return (sentence_width + embed_dim) // 2


def fit_projection(sentences: Tensor, rows: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the two matrices of an MLP that maps the sentences of classes to the classifier's rows.

    A hidden unit is a class: it opens for sentences that are near the sentence of the class. Its bias is a
    linear function of the sentence, because the MLP has none. After layer normalization, some linear function
    is 1 for all sentences. Ridge regression finds the output weights in closed form.

    Args:
        sentences: (K, D), the mean of the last hidden states for the sentence of each class.
        rows: (K, C), the classifier's weights.
        seed: of the choice of classes, if there are more than hidden units.

    Returns: (H, D) and (C, H), H of :func:`hidden_width`, for ``W2 GELU(W1 s)``.
    Raises:
        ValueError: the numbers of sentences and rows differ.
    """
    if len(sentences) != len(rows):
        raise ValueError(f"{len(sentences)} class names for a classifier of {len(rows)} classes.")
    sentences, rows = sentences.double(), rows.double()
    hidden = hidden_width(sentences.shape[1], rows.shape[1])
    chosen = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(seed))[:hidden]
    units = F.normalize(sentences[chosen], dim=1) / sentences.norm(dim=1).mean()
    one = _ridge(sentences, torch.ones(len(sentences), 1).double(), _BIAS_RIDGE * sentences.square().sum())
    first = (units - COSINE * one.T) / WIDTH
    second = _ridge(F.gelu(sentences @ first.T), rows - rows.mean(dim=0), RIDGE * len(sentences) / 1000).T
    unused = hidden - len(chosen)
    return F.pad(first, (0, 0, 0, unused)).float(), F.pad(second, (0, unused)).float()


def _ridge(x: Tensor, y: Tensor, penalty: float | Tensor) -> Tensor:
    """Return the (D, C) matrix that maps x (N, D) to y (N, C) with the least squares and penalty."""
    return torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]).to(x), x.T @ y)

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from .bce import softplus
from .precomputed_grad import register_precomputed_grad

CHUNK = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Numbers in a chunk: on CPUs those of a cache, on GPUs enough to keep it busy."""


def anchor_focal_loss_reference(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> tuple[Tensor]:
    """Compute :func:`anchor_focal_loss` as Detectron2 does, by fvcore."""
    num_classes, labeled = logits.shape[-1], labels >= 0
    target = F.one_hot(labels[labeled], num_classes + 1)[:, :-1]
    return (sigmoid_focal_loss(logits[labeled], target, alpha, gamma, reduction="sum"),)


def anchor_focal_loss(
    logits: Tensor, labels: Tensor, alpha: float, gamma: float, kernels: bool = True
) -> tuple[Tensor]:
    """Sum the focal loss (Lin et al., 2017) of every anchor and class.

    The sum is float32, whatever the precision of ``logits``. With ``kernels``, chunks of anchors are computed
    one after the other, with their gradient. Only the gradient is kept.

    Args:
        logits: (..., K).
        labels: (...) int64 class of each anchor; K: none; negative: the anchor does not count.
        alpha: weight of the class of an anchor, and 1 - alpha of its other classes; negative: all weigh 1.
        gamma: exponent of the modulating factor.
        kernels: False selects the definition.
    Returns: a scalar, alone in a tuple.
    """
    if not kernels:
        return anchor_focal_loss_reference(logits, labels, alpha, gamma)
    return (anchor_focal_loss_op(logits, labels, alpha, gamma)[0],)


@torch.library.custom_op("denseclip_d2::anchor_focal_loss", mutates_args=())
def anchor_focal_loss_op(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Compute :func:`anchor_focal_loss` and the sum's gradient to ``logits``, (..., K) float32."""
    grad = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    anchors = max(1, CHUNK.get(logits.device.type, CHUNK["cuda"]) // max(logits.shape[-1], 1))
    own_labels = labels.flatten().split(anchors)
    own_grads = grad.flatten(0, -2).split(anchors)
    with torch.autocast(logits.device.type, enabled=False):
        for x, own, own_grad in zip(logits.flatten(0, -2).split(anchors), own_labels, own_grads, strict=True):
            total += _focal(own_grad.copy_(x), own, alpha, gamma)
    return total.float(), grad


def _focal(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum the loss of (N, K) logits, and replace them by its gradient."""
    positive = ((labels >= 0) & (labels < logits.shape[1])).nonzero().flatten()
    at = positive, labels[positive]
    weight, own_weight = (1 - alpha, alpha) if alpha >= 0 else (1.0, 1.0)
    weights = (labels >= 0).float()[:, None] * weight
    # Each term is f(x) = p^gamma * softplus(x) with p = sigmoid(x), where the class is the anchor's f(-x).
    logits[at] = -logits[at]
    probability, cross_entropy = logits.sigmoid(), softplus(logits)
    modulated = probability.pow(gamma)
    # f'(x) = p^gamma * (gamma * (1 - p) * softplus(x) + p)
    torch.sub(1, probability, out=logits).mul_(cross_entropy).mul_(gamma).add_(probability).mul_(modulated)
    terms = cross_entropy.mul_(modulated)
    own_terms, own_grad = terms[at] * own_weight, logits[at] * -own_weight
    terms.mul_(weights)[at] = own_terms
    logits.mul_(weights)[at] = own_grad
    return terms.sum(dtype=torch.float64)


@anchor_focal_loss_op.register_fake
def _(logits: Tensor, labels: Tensor, alpha: float, gamma: float):
    grad = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    return logits.new_empty((), dtype=torch.float32), grad


register_precomputed_grad(anchor_focal_loss_op)

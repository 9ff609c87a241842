import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_NORM = 1e-12
"""As of ``torch.nn.functional.normalize``."""


def pixel_text_scores_definition(dense: Tensor, text: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """:func:`pixel_text_scores` written out."""
    text = F.normalize(text, dim=-1).expand(dense.shape[0], -1, -1)  # len() would be a constant of a trace
    scores = torch.einsum("bchw,bkc->bkhw", F.normalize(dense, dim=1), text)
    return scores, scores / tau


def pixel_text_scores(dense: Tensor, text: Tensor, tau: float, kernels: bool = True) -> tuple[Tensor, Tensor]:
    """Cosine similarity of every pixel with every class (paper, eq. 1), and the same over the temperature.

    With ``kernels``, products are divided by the pixels' norms instead of the pixels themselves, of which
    there is then no normalized copy, neither in the forward pass nor for the backward pass.

    Args:
        dense: (B, C, h, w) dense visual embedding.
        text: (B or 1, K, C) text embeddings.
        tau: temperature.
        kernels: False for the definition.
    Returns: s, in [-1, 1], and s / tau; (B, K, h, w) each.
    """
    if not kernels:
        return pixel_text_scores_definition(dense, text, tau)
    pixels = dense.flatten(2)
    with torch.autocast(dense.device.type, enabled=False):  # which would copy the pixels to float32
        norms = torch.linalg.vector_norm(pixels, dim=1, keepdim=True, dtype=torch.float32)
        per_norm = norms.clamp_min(SMALLEST_NORM).reciprocal()
    products = F.normalize(text, dim=-1).expand(dense.shape[0], -1, -1) @ pixels
    scores = (products * per_norm).to(products.dtype).unflatten(2, dense.shape[2:])
    return scores, scores / tau

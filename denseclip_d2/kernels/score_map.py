import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_NORM = 1e-12
"""The default of ``torch.nn.functional.normalize``."""


def pixel_text_scores_reference(dense: Tensor, text: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Compute :func:`pixel_text_scores` step by step."""
    text = F.normalize(text, dim=-1).expand(dense.shape[0], -1, -1)  # len() would be a constant of a trace
    scores = torch.einsum("bchw,bkc->bkhw", F.normalize(dense, dim=1), text)
    return scores, scores / tau


def pixel_text_scores(dense: Tensor, text: Tensor, tau: float, kernels: bool = True) -> tuple[Tensor, Tensor]:
    """Return the cosine similarity of every pixel with every class (paper, eq. 1), and it over ``tau``.

    With ``kernels``, the products are divided by the norms of the pixels. The pixels themselves are not
    normalized, so that neither pass keeps a normalized copy of them.

    Args:
        dense: (B, C, h, w) dense visual embedding.
        text: (B or 1, K, C) text embeddings.
        tau: temperature.
        kernels: False selects the definition.
    Returns: s, in [-1, 1], and s / tau; (B, K, h, w) each.
    """
    if not kernels:
        return pixel_text_scores_reference(dense, text, tau)
    pixels = dense.flatten(2)
    with torch.autocast(dense.device.type, enabled=False):  # which would copy the pixels to float32
        norms = torch.linalg.vector_norm(pixels, dim=1, keepdim=True, dtype=torch.float32)
        per_norm = norms.clamp_min(SMALLEST_NORM).reciprocal()
    products = F.normalize(text, dim=-1).expand(dense.shape[0], -1, -1) @ pixels
    # Not unflatten: torch's ONNX exporter makes its sizes constants.
    scores = (products * per_norm).to(products.dtype).reshape(*products.shape[:2], *dense.shape[2:])
    return scores, scores / tau

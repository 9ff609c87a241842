import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_text_scores(dense: Tensor, text: Tensor) -> Tensor:
    """Cosine similarity of every pixel with every class (paper, eq. 1).

    Args:
        dense: (B, C, h, w) dense visual embedding.
        text: (B or 1, K, C) text embeddings.
    Returns: (B, K, h, w), in [-1, 1].
    """
    text = F.normalize(text, dim=-1).expand(len(dense), -1, -1)
    return torch.einsum("bchw,bkc->bkhw", F.normalize(dense, dim=1), text)

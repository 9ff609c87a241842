from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation that OpenAI trained CLIP with.

    Written as SiLU, which stores one tensor for the backward pass; a product stores two.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return F.silu(1.702 * x) / 1.702


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    mask: Tensor | None = None,
    attend: Callable[..., Tensor] = F.scaled_dot_product_attention,
) -> Tensor:
    """Return attention between projected tokens, by torch's fused kernels where possible.

    Args:
        query: (B, N, D); key, value: (B, M, D), D a multiple of ``num_heads``.
        mask: False where a query must not attend to a key; broadcast to (B, num_heads, N, M).
        attend: the attention of all heads.
    Returns: (B, N, D), before any output projection.
    """
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    return attend(query, key, value, mask).transpose(1, 2).flatten(2)

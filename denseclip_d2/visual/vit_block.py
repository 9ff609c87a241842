from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.utils import window_partition, window_unpartition
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from ..clip_models.layers import multi_head_attention
from .dense_features import DenseAttention


class VisualBlock(ResidualAttentionBlock):
    """open_clip's transformer block, with fused attention, stochastic depth and optional windows."""

    def __init__(self, *args, drop_path_rate: float = 0.0, window_size: int = 0, **kwargs):
        """
        Args:
            window_size: side of the attention windows, in cells (:func:`windowed_attention`); 0 is global
                attention. The parameters are the same.
        """
        super().__init__(*args, **kwargs)
        self.drop_path = StochasticDepth(drop_path_rate, "row")
        self.window_size = window_size

    def forward(self, x: Tensor, size: Sequence[int] = ()) -> Tensor:
        """
        Args:
            x: (B, N, D).
            size: height and width of the map of all tokens but the first; needed by windows.
        Returns: the shape of ``x``.
        """
        x = x + self.drop_path(self.ls_1(self.attention(self.ln_1(x), size)))
        return x + self.drop_path(self.ls_2(self.mlp(self.ln_2(x))))

    def densely(self, x: Tensor, attend: DenseAttention) -> Tensor:
        """Return the block's output with another attention: (B, N, D), as ``x``."""
        query, key, value = projected(self.attn, self.ln_1(x))
        answers = multi_head_attention(query, key, value, self.attn.num_heads, attend=attend)
        answers = self.ls_1(self.attn.out_proj(answers))
        if not attend.feature.whole_block:
            return answers
        x = x + answers
        return x + self.ls_2(self.mlp(self.ln_2(x)))

    def attention(self, x: Tensor, size: Sequence[int] = ()) -> Tensor:
        if self.window_size:
            return self.attn.out_proj(windowed_attention(self.attn, x, size, self.window_size))
        query, key, value = projected(self.attn, x)
        return self.attn.out_proj(multi_head_attention(query, key, value, self.attn.num_heads))


def windowed_attention(attn: nn.MultiheadAttention, x: Tensor, size: Sequence[int], window: int) -> Tensor:
    """Return attention within windows of ``window`` x ``window`` cells (ViTDet, Li et al., ECCV 2022).

    CLIP has a class token, which ViTDet has not. A cell attends to its window and to the class token. The
    class token attends to everything, as in CLIP's training. One window over the whole map is global
    attention.

    Windows at the right and the bottom are padded with cells that no token attends to.

    Args:
        x: (B, 1 + H * W, D), normalized tokens, the class token first.
        size: H and W.
    Returns: the shape of ``x``, before the output projection.
    """
    window = min(window, max(size))  # a larger window has padding alone
    cells, padded = window_partition(x[:, 1:].unflatten(1, size), window)
    cells = cells.flatten(1, 2)  # (B * windows, window * window, D)
    windows = len(cells) // len(x)
    # The class token joins every window before the projection. Later, keys and values would be copied, and
    # copies are kept for the backward pass.
    class_token = x[:, :1].repeat_interleave(windows, dim=0)
    query, key, value = projected(attn, torch.cat([class_token, cells], dim=1))

    real, _ = window_partition(x.new_ones(1, *size, 1), window)
    real = real.flatten(1) > 0  # (windows, window * window)
    mask = F.pad(real, (1, 0), value=True).repeat(len(x), 1)[:, None, None]
    cells = multi_head_attention(query, key, value, attn.num_heads, mask)[:, 1:]
    cells = window_unpartition(cells, window, padded, size).flatten(1, 2)

    # The query of the class token attends to all windows at once, and to one of their class tokens.
    first = torch.arange(windows, device=x.device)[:, None] == 0
    once = torch.cat([first, real], dim=1).view(1, 1, 1, -1)
    key, value = (y.unflatten(0, (-1, windows)).flatten(1, 2) for y in (key, value))
    class_token = multi_head_attention(query[::windows, :1], key, value, attn.num_heads, once)
    return torch.cat([class_token, cells], dim=1)


def choose_global_attn_indexes(layers: int, blocks: Collection[int]) -> Collection[int]:
    """Return the blocks with global attention of ``layers`` blocks, from 0.

    Args:
        blocks: those; empty for the last of every quarter, as in ViTDet.

    Raises:
        ValueError: a block that does not exist.
    """
    if wrong := [i for i in blocks if not 0 <= i < layers]:
        raise ValueError(
            f"global_attn_indexes has {', '.join(map(str, wrong))}; "
            f"the blocks of the ViT are 0 to {layers - 1}."
        )
    return blocks or {-(-layers * quarter // 4) - 1 for quarter in (1, 2, 3, 4)}


def projected(attn: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, ...]:
    """Return query, key and value of ``x``."""
    # nn.MultiheadAttention would hold all N * N weights at inference.
    return F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)

import torch
from torch import Tensor, nn

from ..clip_models.layers import multi_head_attention


class ContextDecoder(nn.Module):
    """Transformer decoder in which text queries attend to the image (paper, sec. 3.3, fig. 4).

    Parameters have the released names.
    """

    def __init__(
        self, embed_dim: int, width: int, num_heads: int, num_layers: int, dropout: float, output_dim: int = 0
    ):
        """
        Args:
            embed_dim: C, width of the queries and of the visual embeddings.
            output_dim: width of the output; 0: C.
        """
        super().__init__()
        self.num_heads = num_heads
        self.memory_proj = nn.Sequential(
            nn.LayerNorm(embed_dim), nn.Linear(embed_dim, width), nn.LayerNorm(width)
        )
        self.text_proj = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, width))
        self.decoder = nn.ModuleList(_DecoderLayer(width, num_heads, dropout) for _ in range(num_layers))
        self.out_proj = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, output_dim or embed_dim))
        self.apply(_init_weights)

    def forward(self, queries: Tensor, global_embedding: Tensor, dense_embedding: Tensor) -> Tensor:
        """
        Args:
            queries: (B, K, C).
            global_embedding: (B, C).
            dense_embedding: (B, C, h, w).
        Returns: (B, K, C), or (B, K, ``output_dim``).
        """
        pixels = dense_embedding.flatten(2).transpose(1, 2)
        memory = self.memory_proj(torch.cat([global_embedding[:, None], pixels], dim=1))  # (B, 1 + HW, width)
        x = self.text_proj(queries)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.out_proj(x)


class _DecoderLayer(nn.Module):
    """Pre-norm self-attention, cross-attention and MLP, each with dropout on the output."""

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.self_attn = _Attention(width, num_heads, dropout)
        self.cross_attn = _Attention(width, num_heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed)
        x = x + self.cross_attn(self.norm2(x), memory)
        return x + self.dropout(self.mlp(self.norm3(x)))


class _Attention(nn.Module):
    """Multi-head attention without biases of query, key and value, as released."""

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        query, key, value = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        return self.dropout(self.proj(multi_head_attention(query, key, value, self.num_heads)))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

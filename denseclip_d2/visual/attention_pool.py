import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn

from ..clip_models.layers import multi_head_attention
from .dense_features import OF_A_POOL, DenseAttention, as_map, dense_feature


def resize_positional_embedding(embedding: Tensor, side: int) -> Tensor:
    """Resize CLIP's positional embedding to another square grid, as released: bilinearly, without token 0.

    Args:
        embedding: (1 + S * S, D).
    Returns: (1 + side * side, D).
    """
    grid = embedding[1:].T.unflatten(1, (int((len(embedding) - 1) ** 0.5), -1))[None]
    grid = F.interpolate(grid.float(), (side, side), mode="bilinear", align_corners=False)
    return torch.cat([embedding[:1], grid[0].flatten(1).T.to(embedding.dtype)])


def fit_positions(embedding: Tensor, grid_size: int, height: int, width: int, position: str) -> Tensor:
    """Return the positional embedding of a (height, width) map and of token 0.

    Args:
        embedding: (1 + grid_size * grid_size, D).
        position: "interpolate" the grid to the map, or "crop" its top left corner.
    Returns: (1 + height * width, D).
    """
    grid = embedding[1:].T.unflatten(1, (grid_size, grid_size))[None]
    if position == "crop":
        grid = grid[..., :height, :width]
    # A grid that is too short to crop is stretched. A trace is for maps of every size, so that it always
    # interpolates; if the sizes agree, this changes nothing.
    if torch.jit.is_tracing() or grid.shape[-2:] != (height, width):
        grid = F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)
    return torch.cat([embedding[:1], grid[0].flatten(1).T])


class DenseAttentionPool(AttentionPool2d):
    """CLIP's attention pool, which returns every token instead of the first alone (paper, sec. 3.2)."""

    heads: Tensor

    def __init__(
        self, grid_size: int, embed_dim: int, num_heads: int, output_dim: int, position: str,
        dense: str = "attention",
    ):  # fmt: skip
        """
        Args:
            grid_size: side of the grid of positional embeddings, in cells.
            position: "interpolate" the grid to each map, or "crop" its top left corner.
            dense: how a cell attends, of :data:`~.dense_features.OF_A_POOL`: "attention" of its query, as
                released, or its own "value", for example. CLIP was trained with the query of the mean alone.
                Queries of cells give nearly the same output; values are local.

        Raises:
            ValueError: another ``dense``.
        """
        super().__init__(grid_size, embed_dim, num_heads, output_dim)
        self.dense, self.feature = dense, dense_feature(dense, OF_A_POOL, "an attention pool")
        self.grid_size = grid_size
        self.position = position
        self.value_proj: nn.Linear | None = None
        # Which channels each head has: (heads, D).
        heads = torch.eye(num_heads).repeat_interleave(embed_dim // num_heads, dim=1)
        self.register_buffer("heads", heads, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: (B, D, h, w).
        Returns: the global embedding (B, C) and the dense embedding (B, C, h, w).
        """
        height, width = x.shape[-2:]
        pixels = x.flatten(2).transpose(1, 2)  # (B, HW, D)
        tokens = torch.cat([pixels.mean(dim=1, keepdim=True), pixels], dim=1)
        tokens = tokens + self.fitted_positions(height, width).to(tokens.dtype)
        if self.dense == "value":
            whole, cells = self._values(tokens)
        else:
            whole, cells = self._attended(tokens, height, width)
        return whole, as_map(cells, (height, width))

    def _attended(self, tokens: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        key, value = self.k_proj(tokens), self.v_proj(tokens)
        query = self.q_proj(tokens if "q" in "".join(self.feature.pairs) else tokens[:, :1])
        attend = DenseAttention(self.feature, (height, width))
        if self.dense == "attention":
            answers = multi_head_attention(query, key, value, self.num_heads)
        else:
            answer = multi_head_attention(query[:, :1], key, value, self.num_heads)
            cells = multi_head_attention(query, key, value, self.num_heads, attend=attend)[:, 1:]
            answers = torch.cat([answer, cells], dim=1)
        tokens = self.c_proj(answers)  # (B, 1 + HW, C)
        return tokens[:, 0], attend.refine(tokens[:, 1:])

    def _values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        answer, cells = self._answer_of_mean(tokens), tokens[:, 1:]
        if self.value_proj:
            return self.c_proj(answer)[:, 0], self.value_proj(cells)
        # One product: distributed training needs a gradient of every weight, also if the mean is not used.
        tokens = self.c_proj(torch.cat([answer, self.v_proj(cells)], dim=1))
        return tokens[:, 0], tokens[:, 1:]

    def _answer_of_mean(self, tokens: Tensor) -> Tensor:
        """Return the attention of the first token alone: (B, 1 + HW, D) to (B, 1, D).

        One query makes projections of all tokens unnecessary: q (W x) = (q W) x, and the weights of an
        attention sum to 1, so that the mean of projected values is the projected mean.
        """
        query = self.q_proj(tokens[:, :1]) * self.heads  # (B, h, D)
        # The bias of the keys changes no softmax, and has a gradient like every weight.
        logits = query @ self.k_proj.weight @ tokens.transpose(1, 2) + query @ self.k_proj.bias[:, None]
        mean = (logits * (query.shape[-1] // self.num_heads) ** -0.5).softmax(dim=-1) @ tokens  # (B, h, D)
        return (self.v_proj(mean) * self.heads).sum(dim=1, keepdim=True)

    @torch.no_grad()
    def fuse_projections(self) -> None:
        """Make one projection of the two that the value of a cell passes, for inference."""
        weight, bias = self.c_proj.weight, self.c_proj.bias
        self.value_proj = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        self.value_proj.weight = nn.Parameter(weight @ self.v_proj.weight)
        self.value_proj.bias = nn.Parameter(weight @ self.v_proj.bias + bias)

    def fitted_positions(self, height: int, width: int) -> Tensor:
        """Return the positional embedding of a (height, width) map: (1 + height * width, D)."""
        return fit_positions(self.positional_embedding, self.grid_size, height, width, self.position)

"""Dense embeddings of a CLIP that need no training: how cells attend in the last attention."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class DenseFeature:
    """How cells attend to each other in the last attention.

    Attributes:
        pairs: the products of queries, keys and values, "qk" as in CLIP. Each has its own softmax, and the
            outputs are summed. Empty: a cell sees its own value alone.
        sigma: standard deviation, in cells, of a Gaussian of the distance that is added to the products;
            0 adds nothing.
        middle: weight of the mean attention of the middle blocks (ViTs).
        whole_block: False leaves out the residual connection and the MLP of the last block (ViTs).
        smooth: average the cells by the cosines of their keys, or of the cells where there are no keys.
    """

    pairs: tuple[str, ...] = ()
    sigma: float = 0.0
    middle: float = 0.0
    whole_block: bool = True
    smooth: bool = False


DENSE_FEATURES = {
    "attention": DenseFeature(("qk",)),
    "value": DenseFeature(),
    "value-smoothed": DenseFeature(smooth=True),
    "query-query": DenseFeature(("qq",)),
    "key-key": DenseFeature(("kk",)),
    "value-value": DenseFeature(("vv",)),
    "sclip": DenseFeature(("qq", "kk")),
    "naclip": DenseFeature(("kk",), sigma=5.0, whole_block=False),
    "clearclip": DenseFeature(("qq",), whole_block=False),
    "resclip": DenseFeature(("kk",), sigma=5.0, middle=0.5, whole_block=False),
}
"""The dense features by name.

- "attention": as CLIP's own tokens, and as DenseCLIP was released.
- "value", "value-smoothed": without attention, and with key smoothing (MaskCLIP, Zhou et al., ECCV 2022,
  sec. 3.2 and 3.3).
- "query-query", "key-key", "value-value": self-correlations in the last block (CLIP Surgery, Li et al.,
  arXiv 2304.05653; GEM, Bousselham et al., CVPR 2024).
- "sclip": correlative self-attention (SCLIP, Wang et al., ECCV 2024, sec. 3.2).
- "naclip": neighbors by a Gaussian (NACLIP, Hajimiri et al., WACV 2025, sec. 3).
- "clearclip": the output of the attention alone (ClearCLIP, Lan et al., ECCV 2024, sec. 3).
- "resclip": "naclip" with the attention of middle blocks (the module RCS of ResCLIP, Yang et al., CVPR 2025).
"""
OF_A_POOL = tuple(name for name in DENSE_FEATURES if name not in ("clearclip", "resclip"))
"""The dense features of an attention pool, which has no residual connection, no MLP and no middle blocks."""
OF_SINGLE_CELLS = ("attention", "value", "value-smoothed")
"""The dense features of an encoder that embeds each cell alone. The first two are equal."""


def dense_feature(name: str, known: Collection[str], what: str) -> DenseFeature:
    """Return a dense feature of ``what`` by name.

    Raises:
        ValueError: it is none of ``known``.
    """
    if name not in known:
        raise ValueError(
            f"dense (MODEL.DENSECLIP.VISUAL.DENSE_FEATURES) is {name!r}, which {what} does not have. Choose "
            f"from {', '.join(map(repr, known))}."
        )
    return DENSE_FEATURES[name]


class DenseAttention:
    """The last attention of one forward pass, in place of ``scaled_dot_product_attention``."""

    def __init__(self, feature: DenseFeature, size: Sequence[int], middle: "MiddleAttention | None" = None):
        """
        Args:
            size: height and width of the map of cells, which are the last tokens.
            middle: has recorded the middle blocks, if the feature needs them.
        """
        self.feature, self.size, self.middle = feature, size, middle
        self._key: Tensor | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Args:
            query, key, value: (B, heads, N, d), projected.
            mask: None; every token sees all.
        Returns: (B, heads, N, d), before the output projection.
        """
        feature, self._key = self.feature, key
        if not feature.pairs:
            return value
        of = {"q": query, "k": key, "v": value}
        near = _gaussian(self.size, value, feature.sigma) if feature.sigma else None
        answers = [F.scaled_dot_product_attention(of[p[0]], of[p[1]], value, near) for p in feature.pairs]
        answer = torch.stack(answers).sum(dim=0)
        return answer.lerp(self.middle.weights @ value, feature.middle) if self.middle else answer

    def refine(self, cells: Tensor) -> Tensor:
        """Return the cells, smoothed by the keys if the feature has that: (B, HW, C), as ``cells``.

        MaskCLIP smooths the scores of classes. The cells here have unit length, so that their products with
        the text are these scores, and the smoothing does not depend on the classes. Without an attention,
        the cells themselves are the keys.
        """
        if not self.feature.smooth:
            return cells
        key = cells if self._key is None else self._key[:, :, -cells.shape[1] :].transpose(1, 2).flatten(2)
        key = F.normalize(key, dim=-1)
        return key @ key.transpose(1, 2) @ F.normalize(cells, dim=-1) / cells.shape[1]


def as_map(cells: Tensor, size: Sequence[int]) -> Tensor:
    """Return (B, HW, D) tokens of cells as (B, D, H, W)."""
    # Not unflatten: torch's ONNX exporter makes its sizes constants.
    return cells.transpose(1, 2).reshape(cells.shape[0], -1, *size)


def _gaussian(size: Sequence[int], like: Tensor, sigma: float) -> Tensor:
    """Return exp(-distance^2 / (2 sigma^2)) of all tokens, (N, N); 0 where one is not a cell."""
    height, width = size
    rows, columns = (torch.arange(side, device=like.device, dtype=like.dtype) for side in size)
    y, x = rows.repeat_interleave(width), columns.repeat(height)
    distances = (y[:, None] - y).square() + (x[:, None] - x).square()
    others = like.shape[-2] - height * width
    return F.pad(torch.exp(-distances / (2 * sigma**2)), (others, 0, others, 0))


class AttentionMode(TorchFunctionMode):
    """Within this context, ``attend`` answers torch's ``scaled_dot_product_attention``.

    timm's blocks differ in projections, norms, rotary positions and gates. This context reaches the attention
    of all of them.
    """

    def __init__(self, attend: Callable[..., Tensor]):
        super().__init__()
        self.attend = attend

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self.attend(*args[:3])


class MiddleAttention(AttentionMode):
    """Average the attention of middle blocks, while all blocks run within this context.

    These are blocks 6 to 9 of 12, or the same part of another depth (ResCLIP). The weights are constants in
    the backward pass.
    """

    def __init__(self, depth: int):
        super().__init__(self._record)
        self.blocks = range(round(depth * 5 / 12), max(1, round(depth * 9 / 12)))
        self.calls, self.weights = 0, torch.zeros(())

    def _record(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.calls in self.blocks:
            with torch.no_grad():
                weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
                self.weights = self.weights + weights / len(self.blocks)
        self.calls += 1
        return F.scaled_dot_product_attention(query, key, value)

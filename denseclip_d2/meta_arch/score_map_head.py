from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from ..guidance import SCORE_MAP, pixel_text_scores
from .text_heads import STUFF


@SEM_SEG_HEADS_REGISTRY.register()
class ScoreMapHead(nn.Module):
    """Label each pixel by its score map, without a learned layer: segmentation by a CLIP alone.

    MaskCLIP (Zhou et al., ECCV 2022) labels pixels in this way. The word "background" says nothing about an
    image. Names of what is in backgrounds, or a threshold, replace the score of this class.
    """

    @configurable
    def __init__(
        self,
        *,
        stride: int,
        tau: float,
        class_names: Sequence[str] = (),
        background: str = "background",
        threshold: float = -1.0,
        ignore_value: int = 255,
    ):
        """
        Args:
            stride: of the score map.
            tau: temperature of the logits.
            class_names: the names that the score map has, until :meth:`set_names` gives others.
            background: the class that replaces the names of stuff and the scores below the threshold.
            threshold: a pixel whose highest score is lower is background; -1: no pixel.
            ignore_value: the label of pixels that do not count in the pixel-text loss.
        """
        super().__init__()
        self.stride, self.tau, self.background, self.threshold = stride, tau, background, threshold
        self.ignore_value = ignore_value
        self.set_names(class_names)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        denseclip = cfg.MODEL.DENSECLIP
        return {
            "stride": input_shape[SCORE_MAP].stride,
            "tau": denseclip.SCORE_MAP.TAU,
            "class_names": denseclip.CLASS_NAMES,
            "background": denseclip.PROMPT.LEARNED_NAME,
            "threshold": denseclip.SCORE_MAP.BACKGROUND_THRESHOLD,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def set_names(self, names: Sequence[str], weights: Tensor | None = None) -> None:
        """Take score maps of these names from now on. The head has no loss for ``weights``."""
        self._index = [*names].index(self.background) if self.background in names else None

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """
        Args:
            features: of :class:`ScoreMapBackbone`.
        Returns: logits (B, K, h * stride, w * stride), and no losses. In training no logits: the pixel-text
            loss is the loss of the score map.
        """
        if self.training:
            return None, {}
        logits = self._scores(features) / self.tau
        return F.interpolate(logits, scale_factor=self.stride, mode="bilinear", align_corners=False), {}

    def _scores(self, features: dict[str, Tensor]) -> Tensor:
        """Return the scores (B, K, h, w) of the classes, with that of the background."""
        scores, found = features[SCORE_MAP].float(), []
        if self._index is None:
            return scores
        if STUFF in features:
            of_stuff, _ = pixel_text_scores(features["dense_embedding"], features[STUFF], self.tau)
            found.append(of_stuff.float().amax(dim=1, keepdim=True))
        if self.threshold > -1:
            found.append(torch.full_like(scores[:, :1], self.threshold))
        if not found:
            return scores
        background = torch.cat(found, dim=1).amax(dim=1, keepdim=True)
        return torch.cat([scores[:, : self._index], background, scores[:, self._index + 1 :]], dim=1)

from collections.abc import Sequence

from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid

from ..visual import CLIPViT
from ..visual.vit_pyramid import LEVELS, build_scale_layer

LAST = "res5"
SCALES = (4.0, 2.0, 1.0, 0.5)
"""The sizes of P2 to P5, relative to the last map."""


class LastMapViT(CLIPViT):
    """CLIP's ViT with one level, ``res5``: the last block's map at the stride of the tokens."""

    @classmethod
    def from_config(cls, cfg, with_embeddings: bool = True) -> dict:
        if backbone := cfg.MODEL.DENSECLIP.VISUAL.BACKBONE:
            raise ValueError(
                f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r} needs a ViT of CLIP, and "
                f"MODEL.DENSECLIP.VISUAL.BACKBONE is {backbone!r}. Set VISUAL.BACKBONE to '', or choose "
                "another BACKBONE.NAME."
            )
        return {**super().from_config(cfg, with_embeddings), "out_features": [LAST]}

    def _add_pyramid(self, out_features: Sequence[str], width: int, norm: str) -> None:
        super()._add_pyramid(out_features, width, norm)
        self._out_feature_strides[LAST] = self.embedding_stride
        self.add_module(LEVELS[LAST], build_scale_layer(width, 1, norm))  # without pooling


class SimplePyramid(SimpleFeaturePyramid):
    """Detectron2's pyramid of a ViT's last map (ViTDet, ECCV 2022): P2 to P6 for a map of stride 16."""

    def __init__(self, net: Backbone, out_channels: int, norm: str):
        """
        Args:
            net: returns the last map as ``res5``.
            out_channels, norm: as for ``SimpleFeaturePyramid``.
        """
        super().__init__(net, LAST, out_channels, SCALES, LastLevelMaxPool(), norm)

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility  # Detectron2 gives it under a misspelled key alone

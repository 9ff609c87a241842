"""The pixels that a visual encoder takes, where a config leaves them to its architecture."""

import timm
from detectron2.config import CfgNode

from ..clip_models import pixels_of


def set_pixels(cfg: CfgNode) -> None:
    """Fill in ``MODEL.PIXEL_MEAN`` and ``PIXEL_STD``, where empty, as the visual encoder has them.

    That is ``MODEL.DENSECLIP.CLIP_MODEL``, or timm's model that ``VISUAL.BACKBONE`` names. Of a backbone of
    Detectron2's nothing is known: then they stay empty.
    """
    backbone = cfg.MODEL.DENSECLIP.VISUAL.BACKBONE
    mean: list[float] = []
    std: list[float] = []
    if not backbone:
        mean, std = pixels_of(cfg.MODEL.DENSECLIP.CLIP_MODEL)
    elif settings := timm.get_pretrained_cfg(backbone.removeprefix("timm/")):
        mean, std = ([round(255 * x, 8) for x in values] for values in (settings.mean, settings.std))
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_MEAN or mean
    cfg.MODEL.PIXEL_STD = cfg.MODEL.PIXEL_STD or std

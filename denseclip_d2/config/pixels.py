"""The pixels that a visual encoder takes, where a config leaves them to its architecture."""

from detectron2.config import CfgNode

from ..clip_models import pixels_of


def set_pixels(cfg: CfgNode) -> None:
    """Fill in ``MODEL.PIXEL_MEAN`` and ``PIXEL_STD``, where empty, as ``CLIP_MODEL`` has them."""
    mean, std = pixels_of(cfg.MODEL.DENSECLIP.CLIP_MODEL)
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_MEAN or mean
    cfg.MODEL.PIXEL_STD = cfg.MODEL.PIXEL_STD or std

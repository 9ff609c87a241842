"""The pixel statistics of a visual encoder, if a config leaves them to its architecture."""

import timm
from detectron2.config import CfgNode
from timm.models import PretrainedCfg

from ..clip_models import pixels_of
from ..visual.timm_backbone import TIMM, TIMM_WEIGHTS


def set_pixels(cfg: CfgNode) -> None:
    """Fill in ``MODEL.PIXEL_MEAN`` and ``PIXEL_STD``, if empty, with the values of the visual encoder.

    The values are those of ``MODEL.DENSECLIP.CLIP_MODEL``, or of a timm model in ``VISUAL.BACKBONE`` and its
    ``VISUAL.WEIGHTS``. For a backbone of Detectron2 they are unknown, and stay empty.
    """
    backbone, weights = cfg.MODEL.DENSECLIP.VISUAL.BACKBONE, cfg.MODEL.DENSECLIP.VISUAL.WEIGHTS
    mean: list[float] = []
    std: list[float] = []
    if not backbone:
        mean, std = pixels_of(cfg.MODEL.DENSECLIP.CLIP_MODEL)
    elif settings := _settings_of(weights, TIMM_WEIGHTS) or _settings_of(backbone, TIMM):
        mean, std = ([round(255 * x, 8) for x in values] for values in (settings.mean, settings.std))
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_MEAN or mean
    cfg.MODEL.PIXEL_STD = cfg.MODEL.PIXEL_STD or std


def _settings_of(path: str, prefix: str) -> PretrainedCfg | None:
    """Return what timm lists for a model and its tag; None for a name that a later check refuses."""
    try:
        return timm.get_pretrained_cfg(path.removeprefix(prefix)) if path.startswith(prefix) else None
    except RuntimeError:  # timm raises it for an unknown tag
        return None

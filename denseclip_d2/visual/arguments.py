import logging

from ..clip_models import OPENCLIP, pixels_of

logger = logging.getLogger(__name__)


def stage_arguments(cfg) -> dict:
    """Return the arguments of a config that treat an encoder's stages."""
    visual = cfg.MODEL.DENSECLIP.VISUAL
    return {
        "norm": visual.NORM,
        "freeze_at": visual.FREEZE_AT,
        "activation_checkpointing": visual.ACTIVATION_CHECKPOINTING,
    }


def clip_arguments(cfg, with_embeddings: bool) -> dict:
    """Return the arguments of a config that all of CLIP's encoders have.

    Warn if images are not normalized as the CLIP was trained, which Detectron2's defaults do not do.
    """
    architecture, weights = cfg.MODEL.DENSECLIP.CLIP_MODEL, cfg.MODEL.WEIGHTS
    tag = weights.rpartition("/")[2] if weights.startswith(f"{OPENCLIP}{architecture}/") else ""
    mean, std = pixels_of(architecture, tag)
    has = [*cfg.MODEL.PIXEL_MEAN, *cfg.MODEL.PIXEL_STD]
    if len(has) != len([*mean, *std]):
        raise ValueError(
            f"MODEL.PIXEL_MEAN is {cfg.MODEL.PIXEL_MEAN} and PIXEL_STD is {cfg.MODEL.PIXEL_STD}: they need 3 "
            f"values each. `denseclip_d2.config.set_pixels(cfg)` replaces [] with those of {architecture}."
        )
    if cfg.INPUT.FORMAT != "RGB" or any(abs(a - b) > 0.01 for a, b in zip(has, [*mean, *std], strict=True)):
        logger.warning(
            f"{architecture} takes RGB of mean {mean} and standard deviation {std}; this config has "
            f"INPUT.FORMAT {cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN {cfg.MODEL.PIXEL_MEAN} and PIXEL_STD "
            f"{cfg.MODEL.PIXEL_STD}, at a loss of accuracy. Set them to the former."
        )
    dense = cfg.MODEL.DENSECLIP.VISUAL.DENSE_FEATURES
    return {**stage_arguments(cfg), "dense": dense, "with_embeddings": with_embeddings}

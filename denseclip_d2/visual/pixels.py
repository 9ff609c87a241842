import logging

logger = logging.getLogger(__name__)


def warn_of_other_pixels(cfg) -> None:
    """Warn where a config's pixels are not as CLIP takes them: Detectron2's defaults are not."""
    if cfg.INPUT.FORMAT != "RGB" or cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]:
        logger.warning(
            "CLIP takes RGB, normalised by its own mean and standard deviation; this config has "
            f"INPUT.FORMAT {cfg.INPUT.FORMAT} and MODEL.PIXEL_STD {cfg.MODEL.PIXEL_STD}, at a loss of "
            "accuracy. configs/Base-DenseCLIP.yaml has the right ones."
        )

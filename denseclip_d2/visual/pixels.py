import logging

logger = logging.getLogger(__name__)


def warn_of_other_pixels(cfg) -> None:
    """Say so where a config gives CLIP other pixels than CLIP takes, as Detectron2's defaults do."""
    if cfg.INPUT.FORMAT != "RGB" or cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]:
        logger.warning(
            "CLIP takes RGB, normalised by its own mean and standard deviation; this config has "
            f"INPUT.FORMAT {cfg.INPUT.FORMAT} and MODEL.PIXEL_STD {cfg.MODEL.PIXEL_STD}, at a loss of "
            "accuracy. configs/Base-DenseCLIP.yaml has the right ones."
        )

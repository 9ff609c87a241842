"""Configs and datasets for tests of semantic segmentation data."""

from configs import prepared_cfg
from denseclip_d2.data.checks import load_datasets

# The recipe's augmentations at a quarter of its sizes
RECIPE = (
    "INPUT.MIN_SIZE_TRAIN", (128,), "INPUT.MAX_SIZE_TRAIN", 512, "INPUT.SCALE_RANGE_TRAIN", (0.5, 2.0),
    "INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [128, 128],
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.75, "INPUT.COLOR_AUG_SSD", True,
)  # fmt: skip


def semantic_config(*opts, num_classes: int = 19):
    head = ("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", num_classes)
    return prepared_cfg("configs/Base-DenseCLIP.yaml", [*head, *opts])


def load(name: str) -> list[dict]:
    return load_datasets([name], filter_empty=True, check_images=True)

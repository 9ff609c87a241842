"""Functions with a faster implementation beside their definition. Each function chooses one of the two."""

from .bce import pixel_text_bce, pixel_text_bce_reference
from .dense_target import dense_target
from .focal_loss import anchor_focal_loss, anchor_focal_loss_reference
from .label_map import label_map_cross_entropy, label_map_cross_entropy_reference
from .score_map import pixel_text_scores, pixel_text_scores_reference

__all__ = [
    "anchor_focal_loss",
    "anchor_focal_loss_reference",
    "dense_target",
    "label_map_cross_entropy",
    "label_map_cross_entropy_reference",
    "pixel_text_bce",
    "pixel_text_bce_reference",
    "pixel_text_scores",
    "pixel_text_scores_reference",
]

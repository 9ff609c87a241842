"""Functions with a faster implementation beside their definition. Each function chooses one of the two."""

from .bce import pixel_text_bce, pixel_text_bce_definition
from .label_map import label_map_cross_entropy, label_map_cross_entropy_definition
from .regions import dense_target
from .score_map import pixel_text_scores, pixel_text_scores_definition

__all__ = [
    "dense_target",
    "label_map_cross_entropy",
    "label_map_cross_entropy_definition",
    "pixel_text_bce",
    "pixel_text_bce_definition",
    "pixel_text_scores",
    "pixel_text_scores_definition",
]

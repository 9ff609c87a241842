from .pixel_text_bce import pixel_text_bce, pixel_text_bce_definition
from .regions import dense_target

__all__ = ["dense_target", "pixel_text_bce", "pixel_text_bce_definition"]

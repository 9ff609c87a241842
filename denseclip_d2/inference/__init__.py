from .predictor import Predictor
from .tta import RetinaNetWithTTA, SemanticSegmentorWithTTA, with_tta

__all__ = ["Predictor", "RetinaNetWithTTA", "SemanticSegmentorWithTTA", "with_tta"]

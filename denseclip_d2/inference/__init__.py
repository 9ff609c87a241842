from .predictor import Predictor
from .runtime import run_in_runtime
from .tta import RetinaNetWithTTA, SemanticSegmentorWithTTA, with_tta

__all__ = ["Predictor", "RetinaNetWithTTA", "SemanticSegmentorWithTTA", "run_in_runtime", "with_tta"]

from .coco import COCOEvaluator
from .lvis import LVISEvaluator
from .pointing import evaluate_words

__all__ = ["COCOEvaluator", "LVISEvaluator", "evaluate_words"]

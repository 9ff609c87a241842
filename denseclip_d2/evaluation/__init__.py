from .coco import COCOEvaluator
from .lvis import LVISEvaluator
from .pointing import evaluate_pointing

__all__ = ["COCOEvaluator", "LVISEvaluator", "evaluate_pointing"]

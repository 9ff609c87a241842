from .launch import run
from .optimizer import build_optimizer
from .predictor import Predictor
from .setup import setup
from .test_time_augmentation import RetinaNetWithTTA, SemanticSegmentorWithTTA, with_tta
from .trainer import Trainer

__all__ = [
    "Predictor",
    "RetinaNetWithTTA",
    "SemanticSegmentorWithTTA",
    "Trainer",
    "build_optimizer",
    "run",
    "setup",
    "with_tta",
]

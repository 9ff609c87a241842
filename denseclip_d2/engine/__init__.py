from .launch import run
from .optimizer import build_optimizer
from .predictor import Predictor
from .setup import load_config, setup
from .test_time_augmentation import RetinaNetWithTTA, SemanticSegmentorWithTTA, with_tta
from .trainer import Trainer

__all__ = [
    "Predictor",
    "RetinaNetWithTTA",
    "SemanticSegmentorWithTTA",
    "Trainer",
    "build_optimizer",
    "load_config",
    "run",
    "setup",
    "with_tta",
]

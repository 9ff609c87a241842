from .launch import run
from .memory import keep_memory
from .optimizer import build_optimizer
from .predictor import Predictor
from .setup import setup
from .test_time_augmentation import RetinaNetWithTTA, SemanticSegmentorWithTTA, with_tta
from .trainer import Trainer
from .words import evaluate_words

__all__ = [
    "Predictor",
    "RetinaNetWithTTA",
    "SemanticSegmentorWithTTA",
    "Trainer",
    "build_optimizer",
    "evaluate_words",
    "keep_memory",
    "run",
    "setup",
    "with_tta",
]

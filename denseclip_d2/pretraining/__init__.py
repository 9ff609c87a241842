"""Contrastive pre-training of CLIP on images with captions, and what a CLIP knows before it sees a label."""

from .evaluation import ZeroShotEvaluator, check_architecture, preprocess_of
from .loss import SharedCaptionLoss
from .trainer import PRECISIONS, Recipe, pretrain

__all__ = [
    "PRECISIONS",
    "Recipe",
    "SharedCaptionLoss",
    "ZeroShotEvaluator",
    "check_architecture",
    "preprocess_of",
    "pretrain",
]

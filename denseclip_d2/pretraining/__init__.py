"""Contrastive pretraining of CLIP on images with captions, and zero-shot evaluation of a CLIP."""

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

"""Contrastive pretraining of CLIP on images with captions, and zero-shot evaluation of a CLIP."""

from .alignment import IMAGENET
from .evaluation import ZeroShotEvaluator, check_architecture, preprocess_of
from .joined_clip import ImageClassifier, join, write_clip
from .loss import SharedCaptionLoss
from .trainer import PRECISIONS, Recipe, pretrain

__all__ = [
    "IMAGENET",
    "ImageClassifier",
    "PRECISIONS",
    "Recipe",
    "SharedCaptionLoss",
    "ZeroShotEvaluator",
    "check_architecture",
    "join",
    "preprocess_of",
    "pretrain",
    "write_clip",
]

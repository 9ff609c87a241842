"""Contrastive pre-training of CLIP on images with captions, and what a CLIP knows before it sees a label."""

from .evaluation import ZeroShotEvaluator, check_architecture
from .loss import SharedCaptionLoss
from .trainer import Recipe, pretrain

__all__ = ["Recipe", "SharedCaptionLoss", "ZeroShotEvaluator", "check_architecture", "pretrain"]

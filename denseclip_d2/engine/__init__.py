from .optimizer import build_optimizer
from .predictor import Predictor
from .setup import load_config, setup
from .trainer import Trainer

__all__ = ["Predictor", "Trainer", "build_optimizer", "load_config", "setup"]

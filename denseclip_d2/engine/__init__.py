from .launch import run
from .optimizer import build_optimizer
from .setup import setup
from .trainer import Trainer

__all__ = ["Trainer", "build_optimizer", "run", "setup"]

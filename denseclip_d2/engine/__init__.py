from .launch import run
from .memory import keep_memory
from .optimizer import build_optimizer
from .setup import setup
from .trainer import Trainer

__all__ = ["Trainer", "build_optimizer", "keep_memory", "run", "setup"]

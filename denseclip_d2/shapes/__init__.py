import os
from pathlib import Path

from .dataset import register_shapes
from .vocabulary import WORLDS

__all__ = ["register_shapes"]

# Where Detectron2 looks for its built-in datasets.
for _world in WORLDS.values():
    register_shapes(Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / _world.name, _world)

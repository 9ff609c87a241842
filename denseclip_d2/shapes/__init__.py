import os
from pathlib import Path

from .dataset import register_shapes
from .vocabulary import VOCABULARIES

__all__ = ["register_shapes"]

# Where Detectron2 looks for its built-in datasets.
for _world in VOCABULARIES.values():
    register_shapes(Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / _world.name, _world)

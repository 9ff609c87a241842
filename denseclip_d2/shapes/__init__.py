import os
from pathlib import Path

from .dataset import register_shapes
from .vocabulary import VOCABULARIES

__all__ = ["register_shapes"]

# Where Detectron2 looks for its built-in datasets.
_root = Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()
for _vocabulary in VOCABULARIES.values():
    register_shapes(_root / _vocabulary.name, _vocabulary)

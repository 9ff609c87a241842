import os
from pathlib import Path

from detectron2.data import MetadataCatalog

from .class_names import get_class_names, readable_names
from .semantic import register_semantic_folder
from .shapes import register_shapes
from .shapes_worlds import WORLDS

__all__ = ["get_class_names", "readable_names", "register_semantic_folder", "register_shapes"]

# Where Detectron2 looks for its built-in datasets.
for _world in WORLDS.values():
    register_shapes(Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / _world.name, _world)

# Detectron2 registers it, for the labels that the script makes.
for _split in ("train", "val"):
    MetadataCatalog.get(f"ade20k_sem_seg_{_split}").how_to_get = "Run `python datasets/prepare_ade20k.py`."

import os
from pathlib import Path

from detectron2.data import MetadataCatalog

from .class_names import clean_class_names, get_class_names
from .label_maps import how_to_get, register_label_maps
from .open_vocabulary import register_open_vocabulary
from .semantic import register_semantic_folder

__all__ = ["get_class_names", "clean_class_names", "register_semantic_folder"]

# Where Detectron2 looks for its built-in datasets. ADE20K is one of them; a script makes its labels.
register_label_maps(Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser())
for _split in ("train", "val"):
    MetadataCatalog.get(f"ade20k_sem_seg_{_split}").how_to_get = how_to_get("ade20k")
register_open_vocabulary()

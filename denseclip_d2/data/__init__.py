from detectron2.data import MetadataCatalog

from .class_names import clean_class_names, get_class_names
from .open_vocabulary import register_open_vocabulary
from .semantic import register_semantic_folder

__all__ = ["get_class_names", "clean_class_names", "register_semantic_folder"]

# Detectron2 registers it, for the labels that the script makes.
for _split in ("train", "val"):
    MetadataCatalog.get(f"ade20k_sem_seg_{_split}").how_to_get = "Run `python datasets/prepare_ade20k.py`."
register_open_vocabulary()

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .checks import check_registered, explained_annotation_errors


def get_class_names(cfg: CfgNode) -> Sequence[str]:
    """The class names a model is to speak of, in the order of the class ids.

    From ``MODEL.DENSECLIP.CLASS_NAMES``; where that is empty, from the metadata of the first training set, or
    of the first test set where there is none to train on.

    Raises:
        ValueError: neither has names, or the dataset is not registered.
    """
    if cfg.MODEL.DENSECLIP.CLASS_NAMES:
        return cfg.MODEL.DENSECLIP.CLASS_NAMES
    datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST][:1]
    for name in datasets:
        check_registered(name)
        metadata = MetadataCatalog.get(name)
        if "thing_classes" not in metadata.as_dict() and metadata.get("json_file"):
            with explained_annotation_errors([name]):
                DatasetCatalog.get(name)  # Detectron2 learns a COCO-format dataset's names by reading it.
        names = metadata.get("thing_classes") or metadata.get("stuff_classes")
        if names:
            return names
    raise ValueError(
        f"No class names: MODEL.DENSECLIP.CLASS_NAMES is empty, and {datasets or 'DATASETS.TRAIN'} has no "
        "thing_classes or stuff_classes in its metadata. Set one of them."
    )

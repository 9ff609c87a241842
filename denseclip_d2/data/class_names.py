import re
from collections import Counter
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .checks import check_class_names, check_registered, explained_annotation_errors
from .tasks import is_semantic


def get_class_names(cfg: CfgNode) -> Sequence[str]:
    """The class names that the model gets, in the order of the class ids.

    From ``MODEL.DENSECLIP.CLASS_NAMES``; where that is empty, from the metadata of the first training set, or
    of the first test set where there is none to train on, and then as :func:`readable_names` makes them.

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
        kinds = ("stuff_classes", "thing_classes") if is_semantic(cfg) else ("thing_classes", "stuff_classes")
        for names in filter(None, map(metadata.get, kinds)):
            check_class_names(name, names)
            return readable_names(names)
    raise ValueError(
        f"No class names: MODEL.DENSECLIP.CLASS_NAMES is empty, and {datasets or 'DATASETS.TRAIN'} has no "
        "thing_classes or stuff_classes in its metadata. Set one of them."
    )


def readable_names(names: Sequence[str]) -> list[str]:
    """Names of a dataset as a sentence would have them, for the text encoder reads them.

    Of a list of synonyms, such as ADE20K's "road, route", the first; of LVIS's "bow_(weapon)" the words, "bow
    weapon": what stands in parentheses tells one sense from another. A name that two classes would then
    share stays as it is.
    """
    words = [" ".join(re.sub(r"[_()]", " ", name.split(",")[0]).split()) for name in names]
    counts = Counter(words)
    return [short if counts[short] == 1 else name for short, name in zip(words, names, strict=True)]

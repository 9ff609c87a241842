"""Clear errors for unusable datasets, before the first iteration instead of hours into training."""

import difflib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.utils.file_io import PathManager

from ..utils.text import read_text
from .agreement import check_ignored, describe_dataset, way_to_as_many_classes
from .coco_json import nameless_category
from .image_checks import check_image_files
from .semantic import check_some_labels
from .tasks import is_semantic, section_of

logger = logging.getLogger(__name__)


def load_datasets(names: Sequence[str], *, filter_empty: bool, check_images: bool) -> list[dict]:
    """Detectron2's ``get_detection_dataset_dicts``, with clear errors.

    Args:
        names: registered datasets.
        filter_empty: leave out images without boxes.
        check_images: see that each image is there, whole and of its annotated size, and each label image
            whole and of its image's size, as far as ``check_image_files`` sees; the labels of some are read.

    Raises:
        ValueError: no dataset is named; one is not registered, has malformed annotations or unusable images.
        FileNotFoundError: an annotation file or folder is missing.
        ImportError: the package that reads one is not installed.
    """
    if not names:
        raise ValueError("No dataset to load: DATASETS.TRAIN is empty. Name one there, or give --train.")
    with explained_annotation_errors(names):
        dicts = get_detection_dataset_dicts(names, filter_empty=filter_empty)
        for record in dicts:
            _check_boxes(record)
    for name in names:
        check_class_names(name, MetadataCatalog.get(name).get("thing_classes", ()))
    if check_images:
        _check_images(names, dicts)
    return dicts


def check_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    """Refuse datasets, once loaded, whose classes are not the model's or differ among them.

    Raises:
        ValueError: as many classes as NUM_CLASSES, under the same names in the same order, are needed, and
            for semantic segmentation the same label of what is ignored.
    """
    section, kind = section_of(cfg), "stuff_classes" if is_semantic(cfg) else "thing_classes"
    num_classes = cfg.MODEL[section].NUM_CLASSES
    classes = {name: tuple(MetadataCatalog.get(name).get(kind, ())) for name in names}
    for name, own in classes.items():
        dataset = describe_dataset(name)
        if not own:
            raise ValueError(
                f"{dataset!r} has no {kind}, which {cfg.MODEL.META_ARCHITECTURE} needs: it is made for "
                "another task. Give DATASETS other datasets."
            )
        if len(own) != num_classes:
            raise ValueError(
                f"{dataset!r} has {len(own)} classes, MODEL.{section}.NUM_CLASSES is {num_classes}. "
                f"{way_to_as_many_classes(cfg, section, kind, len(own))}"
            )
        if (named := len(cfg.MODEL.DENSECLIP.CLASS_NAMES)) not in (0, num_classes):
            raise ValueError(
                f"{dataset!r} has {num_classes} classes, MODEL.DENSECLIP.CLASS_NAMES has {named} names. "
                "Give it one for each class, or set it to (), which takes those of the dataset."
            )
        if own != classes[names[0]]:
            raise ValueError(
                f"{dataset!r} and {describe_dataset(names[0])!r} have different classes, or the same in "
                "another order. Give DATASETS.TRAIN and DATASETS.TEST datasets of the same classes."
            )
    if is_semantic(cfg):
        check_ignored(names, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)


@contextmanager
def explained_annotation_errors(names: Iterable[str]) -> Iterator[None]:
    """Turn what reading annotations of these datasets raises into errors that name the file and the way out.

    Raises:
        ValueError: a dataset is not registered, or its annotations are malformed.
        FileNotFoundError: an annotation file or folder is missing.
        ImportError: the package that reads one is not installed.
    """
    for name in names:
        check_registered(name)
        _check_package(name)
        _check_annotations_exist(name)
    try:
        yield
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        files = [MetadataCatalog.get(name).get("json_file") for name in names]
        for file in filter(None, files):
            _check_category_names(file)
        culprits = ", ".join(map(describe_dataset, names))
        of_lvis = any(map(_is_lvis, names))
        needed = f"A file in {'LVIS' if of_lvis else 'COCO'}'s format is needed; fetch or make it again."
        raise ValueError(
            f"Malformed annotations in {culprits}: {type(error).__name__}: {error}. "
            + (needed if any(files) else "datasets/README.md says what is needed.")
        ) from error


def check_class_names(name: str, class_names: Sequence) -> None:
    """Refuse the class names of a dataset where one is no string.

    Raises:
        ValueError: it is not; the error names the file and the category where there is a file.
    """
    if all(isinstance(words, str) for words in class_names):
        return
    if file := MetadataCatalog.get(name).get("json_file"):
        _check_category_names(file)
    dataset = describe_dataset(name)
    raise ValueError(f"{dataset!r} has class names that are no strings: {list(class_names)[:5]} ...")


def _check_category_names(json_file: str) -> None:
    """
    Raises:
        ValueError: a category of a COCO-format file has no name, or one that is no string.
    """
    try:
        fault = nameless_category(json.loads(read_text(json_file))["categories"])
    except (AttributeError, LookupError, TypeError, ValueError):
        return  # no categories at all: another error's matter
    if fault:
        raise ValueError(f"{json_file}: {fault}") from None


def check_registered(name: str) -> None:
    """Refuse the name of a dataset that Detectron2 does not know.

    Raises:
        ValueError: not registered.
    """
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        raise ValueError(
            f"DATASETS names {name!r}, which is not registered. Near it: {', '.join(near) or 'none'}. "
            "datasets/README.md says how to register your own."
        )


def _is_lvis(name: str) -> bool:
    return MetadataCatalog.get(name).get("evaluator_type") == "lvis"


def _check_package(name: str) -> None:
    """Refuse a dataset of LVIS where the package is missing by which Detectron2 reads and evaluates it."""
    if _is_lvis(name) and find_spec("lvis") is None:
        raise ImportError(
            f"Dataset {name!r} needs the package lvis, which is not installed: pip install --no-deps lvis."
        )


def _check_annotations_exist(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    if files := [*filter(None, map(metadata.get, ("json_file", "panoptic_json")))]:
        missing = next((f"annotation file {file}" for file in files if not PathManager.isfile(file)), "")
    else:
        folders = (metadata.get(key) for key in ("image_root", "sem_seg_root", "image_dir", "gt_dir"))
        missing = next(
            (f"folder {folder}" for folder in folders if folder and not PathManager.isdir(folder)), ""
        )
    if missing:
        hint = metadata.get("how_to_get") or "datasets/README.md says what to put where."
        raise FileNotFoundError(
            f"Dataset {name!r} has no {missing}. {hint} "
            "The environment variable DETECTRON2_DATASETS tells where datasets are (./datasets by default)."
        )


def _check_boxes(record: dict) -> None:
    for annotation in record.get("annotations", ()):
        box = annotation["bbox"]
        if len(box) != 4 or not all(math.isfinite(x) for x in box) or min(box[2:]) < 0:
            raise ValueError(
                f"image {record['file_name']} has a box {box}; needed are x, y, width, height, all finite"
            )


def _check_images(names: Sequence[str], dicts: Sequence[dict]) -> None:
    check_image_files(names, dicts)
    labeled = [record for record in dicts if "sem_seg_file_name" in record]
    if labeled:
        check_some_labels(labeled, names)

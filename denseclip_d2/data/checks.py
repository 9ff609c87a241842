"""Raise clear errors for unusable datasets before the first iteration, instead of hours into training."""

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog, get_detection_dataset_dicts
from detectron2.utils.file_io import PathManager

from ..utils.text import read_text
from .coco_json import nameless_category
from .coco_source import listed
from .image_checks import check_image_files, describe_dataset
from .semantic import check_some_labels
from .tasks import is_semantic, num_classes_section, takes_any_names


def load_datasets(names: Sequence[str], *, filter_empty: bool, check_images: bool) -> list[dict]:
    """Call Detectron2's ``get_detection_dataset_dicts``, with clear errors.

    Args:
        names: registered datasets.
        filter_empty: leave out images without boxes.
        check_images: check the files of all images and label images with :func:`check_image_files`, and the
            labels of some.

    Raises:
        ValueError: no dataset is named; a dataset is not registered, or has malformed annotations or
            unusable images.
        FileNotFoundError: an annotation file or folder is missing.
        ImportError: the package that reads a dataset is not installed.
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
        check_image_files(names, dicts)
        if labeled := [record for record in dicts if "sem_seg_file_name" in record]:
            check_some_labels(labeled, names)
    return dicts


def check_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    """Check that loaded datasets have the same classes, as many as the model, and ignore the same label.

    Datasets to test a model on that takes any names may have any classes.

    Raises:
        ValueError: the number or the names of classes, or their order, or the ignored labels differ.
    """
    section, kind = num_classes_section(cfg), "stuff_classes" if is_semantic(cfg) else "thing_classes"
    num_classes, named = cfg.MODEL[section].NUM_CLASSES, len(cfg.MODEL.DENSECLIP.CLASS_NAMES)
    classes = {name: tuple(MetadataCatalog.get(name).get(kind, ())) for name in names}
    for name, own in classes.items():
        dataset, tested = describe_dataset(name), takes_any_names(cfg) and name not in cfg.DATASETS.TRAIN
        if not own and not (tested and MetadataCatalog.get(name).get("thing_classes")):
            raise ValueError(
                f"{dataset!r} has no {kind}, which {cfg.MODEL.META_ARCHITECTURE} needs: it is made for "
                "another task. Give DATASETS other datasets."
            )
        if tested:
            continue  # the model is evaluated with the names of the dataset
        if len(own) != num_classes:
            raise ValueError(
                f"{dataset!r} has {len(own)} classes, MODEL.{section}.NUM_CLASSES is {num_classes}. "
                f"{_advice_on_class_count(cfg, section, kind, len(own))}"
            )
        if named not in (0, num_classes):
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
        _check_ignored(names, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)


def _advice_on_class_count(cfg: CfgNode, section: str, kind: str, count: int) -> str:
    """Return what to set if a dataset has ``count`` classes and the model another number."""
    known = {name: MetadataCatalog.get(name).get(kind) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
    counts = {name: len(classes) for name, classes in known.items() if classes}
    if {*counts.values()} - {count}:
        listed = ", ".join(f"{describe_dataset(name)} has {number}" for name, number in counts.items())
        return f"Give DATASETS.TRAIN and DATASETS.TEST datasets of the same classes: {listed}."
    names = len(cfg.MODEL.DENSECLIP.CLASS_NAMES)
    also = "" if names in (0, count) else " and MODEL.DENSECLIP.CLASS_NAMES to ()"
    return f"Set MODEL.{section}.NUM_CLASSES to {count}{also}, or give DATASETS other datasets."


def _check_ignored(names: Sequence[str], ignore_value: int) -> None:
    ignored = {name: MetadataCatalog.get(name).get("ignore_label", ignore_value) for name in names}
    listed = ", ".join(f"{describe_dataset(name)!r} ignores label {label}" for name, label in ignored.items())
    if len({*ignored.values()}) > 1:
        raise ValueError(f"{listed}. Register all with the same ignore_label.")
    if {*ignored.values()} - {ignore_value}:
        label = ignored[names[0]]
        raise ValueError(f"{listed}, MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignore_value}. Set it to {label}.")


@contextmanager
def explained_annotation_errors(names: Iterable[str]) -> Iterator[None]:
    """Turn the errors of reading these datasets into errors that name the file and the way out.

    Raises:
        ValueError: a dataset is not registered, or its annotations are malformed.
        FileNotFoundError: an annotation file or folder is missing.
        ImportError: the package that reads a dataset is not installed.
    """
    for name in names:
        check_registered(name)
    metadata = [MetadataCatalog.get(name) for name in names]
    of_lvis = [each.name for each in metadata if each.get("evaluator_type") == "lvis"]
    if of_lvis and find_spec("lvis") is None:
        raise ImportError(
            f"Dataset {of_lvis[0]!r} needs the package lvis, which is not installed: "
            "pip install --no-deps lvis."
        )
    for name in names:
        _check_annotations_exist(name)
    try:
        yield
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and any(each.get("source") for each in metadata):
            raise  # the readers of own data name the file, the item and the remedy
        files = [*filter(None, (each.get("json_file") for each in metadata))]
        for file in files:
            _check_category_names(file)
        if "thing_classes" in str(error):  # Detectron2 found other names in the file than it knows
            for each in metadata:
                _check_same_categories(each)
        needed = f"A file in {'LVIS' if of_lvis else 'COCO'}'s format is needed; fetch or make it again."
        raise ValueError(
            f"Malformed annotations in {', '.join(map(describe_dataset, names))}: {type(error).__name__}: "
            f"{error}. {needed if files else 'datasets/README.md says what is needed.'}"
        ) from error


def check_class_names(name: str, class_names: Sequence) -> None:
    """Check that the class names of a dataset are strings.

    Raises:
        ValueError: a name is not; the error names the category and the file, if there is a file.
    """
    if all(isinstance(words, str) for words in class_names):
        return
    if file := MetadataCatalog.get(name).get("json_file"):
        _check_category_names(file)
    dataset = describe_dataset(name)
    raise ValueError(f"{dataset!r} has class names that are not strings: {list(class_names)[:5]} ...")


def _check_category_names(json_file: str) -> None:
    try:
        fault = nameless_category(json.loads(read_text(json_file))["categories"])
    except (AttributeError, LookupError, TypeError, ValueError):
        return  # no categories at all, which is another error
    if fault:
        raise ValueError(f"{json_file}: {fault}") from None


def _check_same_categories(metadata: Metadata) -> None:
    known, file = set(metadata.get("thing_classes", ())), metadata.get("json_file")
    found = {category["name"] for category in json.loads(read_text(file))["categories"]} if file else known
    if found != known:
        differences = [f"no {name!r}" for name in sorted(known - found)] + [*map(repr, sorted(found - known))]
        raise ValueError(
            f"{file} has other categories than {metadata.name}: {listed(differences, 3)}. Put the file of "
            f"{metadata.name} there, or register yours under another name."
        ) from None


def check_registered(name: str) -> None:
    """Raise an error that names the nearest datasets if Detectron2 does not know this one.

    Raises:
        ValueError: the dataset is not registered.
    """
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        raise ValueError(
            f"DATASETS names {name!r}, which is not registered. Near it: {', '.join(near) or 'none'}. "
            "datasets/README.md says how to register your own."
        )


def _check_annotations_exist(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    kind, is_there = "annotation file", PathManager.isfile
    paths = [*filter(None, map(metadata.get, ("json_file", "panoptic_json")))]
    if not paths:
        kind, is_there = "folder", PathManager.isdir
        paths = [*filter(None, map(metadata.get, ("image_root", "sem_seg_root", "image_dir", "gt_dir")))]
    if missing := next((path for path in paths if not is_there(path)), ""):
        hint = metadata.get("how_to_get") or "datasets/README.md says what to put where."
        raise FileNotFoundError(
            f"Dataset {name!r} has no {kind} {missing}. {hint} "
            "The environment variable DETECTRON2_DATASETS tells where datasets are (./datasets by default)."
        )


def _check_boxes(record: dict) -> None:
    for annotation in record.get("annotations", ()):
        box = annotation["bbox"]
        if len(box) != 4 or not all(math.isfinite(x) for x in box) or min(box[2:]) < 0:
            raise ValueError(
                f"image {record['file_name']} has a box {box}; needed are x, y, width, height, all finite"
            )

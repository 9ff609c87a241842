"""Clear errors for unusable datasets, before the first iteration instead of hours into training."""

import difflib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.utils.file_io import PathManager
from PIL import Image
from tqdm import tqdm

from .semantic import is_semantic

logger = logging.getLogger(__name__)

EXIF_ORIENTATION, EXIF_TRANSPOSED = 0x0112, (5, 6, 7, 8)
ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def load_datasets(names: Sequence[str], *, filter_empty: bool, check_images: bool) -> list[dict]:
    """Detectron2's ``get_detection_dataset_dicts``, with clear errors.

    Args:
        names: registered datasets.
        filter_empty: leave out images without boxes.
        check_images: see that each image is there, whole and of its annotated size; reads their headers and
            last bytes only.

    Raises:
        ValueError: no dataset is named; one is not registered, has malformed annotations or unusable images.
        FileNotFoundError: an annotation file is missing.
    """
    if not names:
        raise ValueError("No dataset to load: DATASETS.TRAIN is empty.")
    with explained_annotation_errors(names):
        dicts = get_detection_dataset_dicts(names, filter_empty=filter_empty)
        for record in dicts:
            _check_boxes(record)
    if check_images:
        _check_images(names, dicts)
    return dicts


def check_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    """Refuse datasets, once loaded, whose classes are not the model's or differ among them.

    Raises:
        ValueError: as many classes as NUM_CLASSES, under the same names in the same order, are needed.
    """
    if is_semantic(cfg):
        section, kind = "SEM_SEG_HEAD", "stuff_classes"
    else:
        section = "RETINANET" if "RetinaNet" in cfg.MODEL.META_ARCHITECTURE else "ROI_HEADS"
        kind = "thing_classes"
    num_classes = cfg.MODEL[section].NUM_CLASSES
    classes = {name: tuple(MetadataCatalog.get(name).get(kind, ())) for name in names}
    for name, own in classes.items():
        if not own:
            raise ValueError(
                f"{name!r} has no {kind}, which {cfg.MODEL.META_ARCHITECTURE} needs: it is made for another "
                "task. Give DATASETS other datasets."
            )
        if len(own) != num_classes:
            raise ValueError(
                f"{name!r} has {len(own)} classes, MODEL.{section}.NUM_CLASSES is {num_classes}. "
                f"Set MODEL.{section}.NUM_CLASSES to {len(own)}, or give DATASETS other datasets."
            )
        if own != classes[names[0]]:
            raise ValueError(
                f"{name!r} and {names[0]!r} have different classes, or the same in another order. "
                "Give DATASETS.TRAIN and DATASETS.TEST datasets of the same classes."
            )


@contextmanager
def explained_annotation_errors(names: Iterable[str]) -> Iterator[None]:
    """Turn what reading annotations of these datasets raises into errors that name the file and the way out.

    Raises:
        ValueError: a dataset is not registered, or an annotation file is malformed.
        FileNotFoundError: an annotation file is missing.
    """
    for name in names:
        check_registered(name)
        _check_annotation_file(name)
    try:
        yield
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        files = ", ".join(str(MetadataCatalog.get(name).get("json_file", name)) for name in names)
        raise ValueError(
            f"Malformed annotations in {files}: {type(error).__name__}: {error}. "
            "A COCO-format file is needed; fetch or make it again."
        ) from error


def check_registered(name: str) -> None:
    """Refuse the name of a dataset that Detectron2 does not know.

    Raises:
        ValueError: not registered.
    """
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
        raise ValueError(
            f"DATASETS names {name!r}, which is not registered. Near it: {', '.join(near) or 'none'}. "
            "Register your own with detectron2.data.datasets.register_coco_instances."
        )


def _check_annotation_file(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    file = metadata.get("json_file")
    if file and not PathManager.isfile(file):
        hint = metadata.get("how_to_get") or "datasets/README.md says what to put where."
        raise FileNotFoundError(
            f"Dataset {name!r} has no annotation file {file}. {hint} "
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
    logger.info(f"Checking the {len(dicts)} images of {', '.join(names)} (DATASETS.CHECK_IMAGES) ...")
    with ThreadPoolExecutor(16) as pool:  # reading headers waits for the disk, not for the processor
        faults = [
            f for f in tqdm(pool.map(_image_fault, dicts), total=len(dicts), delay=2, unit="image") if f
        ]
    if faults:
        listed = "\n  ".join(faults[:10] + ([f"and {len(faults) - 10} more"] if len(faults) > 10 else []))
        raise ValueError(
            f"{len(faults)} of {len(dicts)} images of {', '.join(names)} cannot be used:\n  {listed}\n"
            "Fetch them again, or take them out of the annotation file."
        )


def _image_fault(record: dict) -> str:
    """What is wrong with the image of a dataset record; empty if nothing is."""
    path = record["file_name"]
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            size = image.size
            if image.getexif().get(EXIF_ORIENTATION) in EXIF_TRANSPOSED:
                size = size[::-1]
            if not _ends_well(file, image.format):
                image.load()
    except FileNotFoundError:
        return f"{path} is missing"
    except Exception as error:  # Pillow has many words for a broken file, SyntaxError among them
        return f"{path} is broken or truncated ({error})"
    annotated = (record.get("width", size[0]), record.get("height", size[1]))
    if size != annotated:
        return (
            f"{path} is {size[0]}x{size[1]} and annotated as {annotated[0]}x{annotated[1]} (width x height)"
        )
    return ""


def _ends_well(file: BinaryIO, image_format: str | None) -> bool:
    """Whether a file ends as whole files of its format do; such a file need not be decoded to trust it."""
    ending = ENDINGS.get(image_format or "")
    if ending is None:
        return False
    position = file.tell()
    file.seek(-min(len(ending), file.seek(0, 2)), 2)
    ends_well = file.read() == ending
    file.seek(position)
    return ends_well

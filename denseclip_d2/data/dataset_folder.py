"""Read the data that a person names: a COCO file, or a YOLO or Pascal VOC folder."""

from collections.abc import Hashable, Sequence
from functools import lru_cache
from pathlib import Path

from .coco_dataset import CocoDataset
from .coco_json import CONVERT, read_json, without_garbage_collection
from .coco_reader import normalize
from .coco_source import CocoSource, find_files, listed
from .image_io import image_size
from .voc import is_voc, read_voc
from .yolo import SUFFIXES as YOLO_SUFFIXES
from .yolo import read_yolo, yolo_file

FORMS = "a COCO file and the folder of its images, a YOLO data.yaml, or a YOLO or Pascal VOC folder"


@lru_cache(maxsize=2)
def read_own(values: tuple[str, ...], split: str, stamp: Hashable) -> CocoDataset:
    """Read and normalize a split of ``DATASETS.CUSTOM.TRAIN`` or ``VAL``. Do not change the result.

    Args:
        split: "train" or "val". If a folder has no "val", its "test" is read, or else its "train".
        stamp: see :func:`stamp_of`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file is malformed.
    """
    with without_garbage_collection():
        # COCO's files can take gigabytes: only what is made of them is kept.
        sources = read_source(values) if len(values) == 2 else _read_folder(values, stamp)
        return normalize(next(sources[s] for s in (split, "test", "train") if s in sources), image_size)


def has_val(values: tuple[str, ...], stamp: Hashable) -> bool:
    """Return whether the data have validation images of their own."""
    return len(values) == 1 and "val" in _read_folder(values, stamp)


def stamp_of(values: Sequence[str]) -> Hashable:
    """Return a value that changes when the file, or a file in the folder, changes."""
    path = Path(values[0]).expanduser()
    files = [path] if len(values) == 2 else find_files(path if path.is_dir() else path.parent)
    return hash(tuple((str(file), file.stat().st_mtime_ns) for file in files if file.exists()))


def read_source(values: Sequence[str]) -> dict[str, CocoSource]:
    """Read a dataset without normalizing it.

    Args:
        values: as after ``--train``: a data.yaml, or a YOLO or Pascal VOC folder; or a COCO file and the
            folder of its images.

    Returns: "train", and "val" and "test" if the dataset has them.

    Raises:
        FileNotFoundError: a file or folder is missing, or something that a file names.
        ValueError: the values are none of these, or a file in the dataset is malformed.
    """
    path = Path(values[0]).expanduser()
    is_yolo = path.suffix.lower() in YOLO_SUFFIXES
    if len(values) > 2:
        raise ValueError(f"{len(values)} values are given: {' '.join(values)}. Give {FORMS}.")
    if len(values) == 2:
        if path.is_dir() or is_yolo:
            raise ValueError(f"{values[0]} is not a COCO file. Leave out {values[1]}, or give {FORMS}.")
        file, images = (Path(value).expanduser().resolve() for value in values)
        if not file.is_file():
            raise FileNotFoundError(f"There is no file {values[0]}. {CONVERT}")
        if not images.is_dir():
            raise FileNotFoundError(f"There is no folder {values[1]} for the images of {values[0]}.")
        return {"train": CocoSource(read_json(file), images, str(file))}
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if is_yolo or (path.is_dir() and yolo_file(path)):
        return read_yolo(path)
    if path.is_dir() and is_voc(path):
        return read_voc(path)
    raise ValueError(_advice(path))


@lru_cache(maxsize=4)
def _read_folder(values: tuple[str, ...], stamp: Hashable) -> dict[str, CocoSource]:
    return read_source(values)


def _advice(path: Path) -> str:
    """Return what to do with a path that holds none of the formats."""
    if path.suffix.lower() == ".json":
        return f"{path} needs the folder of its images after it."
    if path.is_file():
        return f"{path} is not a dataset. Give {FORMS}."
    if files := sorted(path.rglob("*.json")):
        return f"{path} holds {listed(files, 3)}. Give the COCO file, and after it the folder of its images."
    return (
        f"{path} holds neither data.yaml (YOLO) nor XML files (Pascal VOC) nor a COCO file. Export the data "
        "in one of these formats. Give label images with --train-semantic."
    )

"""The reader for the data that a person names."""

from collections.abc import Sequence
from pathlib import Path

from .coco_source import CocoSource, listed
from .voc import is_voc, read_voc
from .yolo import SUFFIXES as YOLO_SUFFIXES
from .yolo import read_yolo, yolo_file

FORMS = "a COCO file and the folder of its images, a YOLO data.yaml, or a YOLO or Pascal VOC folder"


def read_source(values: Sequence[str]) -> dict[str, CocoSource] | None:
    """Read a YOLO or Pascal VOC dataset.

    Args:
        values: as after ``--train``: a data.yaml, or a YOLO or Pascal VOC folder; or a COCO file and the
            folder of its images.

    Returns: "train", and "val" and "test" where the dataset has them. None for a COCO file.

    Raises:
        FileNotFoundError: there is no such file or folder, or what a file names is not there.
        ValueError: the values are none of these, or a file in the dataset is wrong.
    """
    if len(values) not in (1, 2):
        raise ValueError(f"{len(values)} values are given: {' '.join(values)}. Give {FORMS}.")
    path = Path(values[0]).expanduser()
    if len(values) == 2:
        if path.is_dir() or path.suffix.lower() in YOLO_SUFFIXES:
            raise ValueError(f"{values[0]} is no COCO file, and goes without {values[1]}. Give {FORMS}.")
        return None
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    if path.suffix.lower() in YOLO_SUFFIXES or (path.is_dir() and yolo_file(path)):
        return read_yolo(path)
    if path.is_dir() and is_voc(path):
        return read_voc(path)
    raise ValueError(_advice(path))


def _advice(path: Path) -> str:
    """Return what to do with a path that holds none of the formats."""
    if path.suffix.lower() == ".json":
        return f"{path} needs the folder of its images after it."
    if path.is_file():
        return f"{path} is none of these: {FORMS}."
    if files := sorted(path.rglob("*.json")):
        return f"{path} holds {listed(files, 3)}. Name the COCO file, and after it the folder of its images."
    return (
        f"{path} holds neither data.yaml (YOLO) nor XML files (Pascal VOC) nor a COCO file. Export the data "
        "as one of these. Labels of pixels go with --train-semantic."
    )

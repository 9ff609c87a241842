"""Return the data of other formats as the content that a COCO file of the same data would have."""

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from ..utils.text import read_text
from .image_io import image_size

logger = logging.getLogger(__name__)

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""The names of each split in folders and files."""


@dataclass(frozen=True)
class CocoSource:
    """One split of a dataset.

    Attributes:
        content: the content of a COCO file, or of another format as such. Then ids count from 1.
        image_root: the folder that relative file names begin from.
        description: names the split in messages, as "my/data.yaml (YOLO, train)".
    """

    content: Any
    image_root: Path
    description: str


class LabeledObject(NamedTuple):
    """One object of an image.

    Attributes:
        class_index: from 0, in the order of the class names.
        corners: x0, y0, x1, y1 of the box, in pixels.
        polygon: x, y, x, y, ... in pixels; empty without an outline.
    """

    class_index: int
    corners: tuple[float, float, float, float]
    polygon: tuple[float, ...] = ()


class LabeledImage(NamedTuple):
    """An image with its size, (width, height) in pixels as the image is read, and its objects."""

    path: Path
    size: tuple[int, int]
    objects: Sequence[LabeledObject]


def as_coco(
    images: Iterable[LabeledImage], class_names: Sequence[str], root: Path, description: str
) -> CocoSource:
    """Return labeled images as the content of a COCO file.

    Images without objects stay. Objects without area are left out with a warning: nothing can be found there.
    """
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, 1)]
    content: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
    empty = []
    for image_id, (path, (width, height), objects) in enumerate(images, 1):
        file_name = str(path.relative_to(root) if path.is_relative_to(root) else path)
        content["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for class_index, (x0, y0, x1, y1), polygon in objects:
            if x0 >= x1 or y0 >= y1:
                empty.append(path)
                continue
            annotation = {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": class_index + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": _area(polygon) or (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }
            if polygon:
                annotation["segmentation"] = [[*polygon]]
            content["annotations"].append(annotation)
    if empty:
        logger.warning("%s: %d boxes have no area: left out. %s", description, len(empty), listed(empty, 3))
    return CocoSource(content, root, description)


def _area(polygon: Sequence[float]) -> float:
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def read_lines(file: Path) -> list[str]:
    """Return the stripped lines of a text file, without empty lines at its ends."""
    return [line.strip() for line in read_text(file).strip().splitlines()]


def own_path(value: str) -> Path:
    """Return the absolute path of a file or folder. A link keeps its own name."""
    path = Path(value).expanduser()
    return path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()


def find_images(folder: Path) -> list[Path]:
    """Return the images in a folder and in its folders, sorted."""
    return [file for file in find_files(folder) if is_image(file)]


def find_files(folder: Path, suffix: str = "") -> list[Path]:
    """Return the files in a folder and in its folders, sorted.

    Hidden files are left out. Links to folders are followed, except links to a folder that holds them.
    """
    paths = []
    # Path.rglob follows no links before Python 3.13.
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _leads_up(Path(parent, name))]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in paths if path.suffix.lower() == suffix or not suffix)


def _leads_up(path: Path) -> bool:
    return path.is_symlink() and any(p.resolve().is_relative_to(path.resolve()) for p in path.parents)


def is_image(path: Path) -> bool:
    """Return whether Pillow reads images with the suffix of this file."""
    return path.suffix.lower() in _image_suffixes()


@cache
def _image_suffixes() -> frozenset[str]:
    return frozenset(s for s, name in Image.registered_extensions().items() if name in Image.OPEN)


def image_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Return width and height of each image, after the turn of its EXIF orientation; read only headers.

    Raises:
        ValueError: an image cannot be read; the error names ten of them.
    """
    faults = []

    def size_of(path: Path) -> tuple[int, int]:
        try:
            return image_size(path)
        except (OSError, ValueError) as error:
            faults.append(str(getattr(error, "fault", error)).rstrip("."))
            return 0, 0

    with ThreadPoolExecutor(16) as pool:  # reading headers waits for the disk, not for the processor
        sizes = list(tqdm(pool.map(size_of, paths), total=len(paths), delay=2, unit="image"))
    if faults:
        raise ValueError(
            f"{len(faults)} of {len(paths)} images cannot be read: {listed(sorted(faults))}. "
            "Fetch them again, or remove them and their labels."
        )
    return sizes


def listed(items: Sequence[object], limit: int = 10, separator: str = ", ") -> str:
    """Return the first items as text, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(map(str, items[:limit])) + more

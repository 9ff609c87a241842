"""What a reader of another format returns: the content that a COCO file of the same data would have."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from .pictures import image_size


@dataclass(frozen=True)
class CocoSource:
    """One split of a dataset.

    Attributes:
        content: what ``json.load`` of a COCO file returns: the lists images, annotations and categories.
            Of other formats, the ids count from 1.
        image_root: the folder that relative file names begin from.
        description: names the split in messages, as "my/data.yaml (YOLO, train)".
    """

    content: Any
    image_root: Path
    description: str


@dataclass(frozen=True)
class LabeledObject:
    """One object of an image.

    Attributes:
        class_index: from 0, in the order of the class names.
        corners: x0, y0, x1, y1 of the box, in pixels.
        polygon: x, y, x, y, ... in pixels; empty without an outline.
    """

    class_index: int
    corners: tuple[float, float, float, float]
    polygon: tuple[float, ...] = ()

    @property
    def area(self) -> float:
        """Return the area of the polygon, or of the box where there is no polygon, in square pixels."""
        if not self.polygon:
            x0, y0, x1, y1 = self.corners
            return (x1 - x0) * (y1 - y0)
        xs, ys = self.polygon[::2], self.polygon[1::2]
        crossed = (xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))
        return abs(sum(crossed)) / 2


@dataclass(frozen=True)
class LabeledImage:
    """An image with its size, (width, height) in pixels as the image is read, and its objects."""

    path: Path
    size: tuple[int, int]
    objects: Sequence[LabeledObject]


def as_coco(
    images: Iterable[LabeledImage], class_names: Sequence[str], root: Path, description: str
) -> CocoSource:
    """Return labeled images as the content of a COCO file. Images without objects stay."""
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, 1)]
    content: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
    for image_id, image in enumerate(images, 1):
        path = image.path
        file_name = str(path.relative_to(root) if path.is_relative_to(root) else path)
        width, height = image.size
        content["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for labeled in image.objects:
            x0, y0, x1, y1 = labeled.corners
            annotation = {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": labeled.class_index + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": labeled.area,
                "iscrowd": 0,
            }
            if labeled.polygon:
                annotation["segmentation"] = [[*labeled.polygon]]
            content["annotations"].append(annotation)
    return CocoSource(content, root, description)


def find_images(folder: Path) -> list[Path]:
    """Return the images in a folder and in its folders, sorted."""
    return [file for file in find_files(folder) if is_image(file)]


def find_files(folder: Path, suffix: str = "") -> list[Path]:
    """Return the files in a folder and in its folders, sorted.

    Hidden files are left out. Links to folders are followed, except to a folder that holds the link.
    """
    paths = []
    # Path.rglob follows no links before Python 3.13.
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _leads_up(Path(parent, name))]
        paths += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in paths if path.suffix.lower() == suffix or not suffix)


def _leads_up(path: Path) -> bool:
    """Return whether a path is a link to a folder that the path leads through."""
    return path.is_symlink() and any(p.resolve().is_relative_to(path.resolve()) for p in path.parents)


def is_image(path: Path) -> bool:
    """Return whether a file has an ending of an image that Pillow reads."""
    return path.suffix.lower() in _image_suffixes()


@cache
def _image_suffixes() -> frozenset[str]:
    return frozenset(s for s, name in Image.registered_extensions().items() if name in Image.OPEN)


def image_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Return width and height of each image as the image is read, which is after its EXIF orientation.

    Only headers are read.

    Raises:
        ValueError: an image cannot be read; the error names ten of them.
    """
    with ThreadPoolExecutor(16) as pool:  # reading headers waits for the disk, not for the processor
        sizes = list(tqdm(pool.map(_image_size, paths), total=len(paths), delay=2, unit="image"))
    faults = [size for size in sizes if isinstance(size, str)]
    if faults:
        raise ValueError(
            f"{len(faults)} of {len(paths)} images cannot be read: {listed(faults)}. Fetch them again, or "
            "take them and their labels out."
        )
    return [size for size in sizes if not isinstance(size, str)]


def _image_size(path: Path) -> tuple[int, int] | str:
    """Return width and height, or what is wrong with the image."""
    try:
        return image_size(path)
    except (OSError, ValueError) as error:
        return str(getattr(error, "fault", error)).rstrip(".")


def listed(items: Sequence[object], limit: int = 10) -> str:
    """Return the first items, separated by commas, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(str, items[:limit])) + more

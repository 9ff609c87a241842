"""Count what a dataset holds, and find what is odd in it, before training."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from .coco_source import listed
from .semantic import read_labels
from .unused_annotations import unused_reason

AREAS = {"small": 32**2, "medium": 96**2, "large": float("inf")}
"""COCO's kinds of object sizes, and the area in pixels that each is below."""

TINY = 8
"""Pixels of the resized image that an object's sides need: a cell of a detector's finest map."""

LONG_NAME = 3
"""Tokens of the longest name that the released models do not cut."""


@dataclass(frozen=True)
class Issue:
    """Something to look at before training.

    Attributes:
        what: in words.
        where: all images, classes or names.
    """

    what: str
    where: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.where)} {self.what}: {listed(self.where, 3, '; ')}"


@dataclass(frozen=True)
class Statistics:
    """
    Attributes:
        images, labeled: number of images, and of those with an object or a pixel of a class.
        objects: by class name; of label maps, pixels.
        in_images: by class name, the number of images with this class.
        sizes: objects by COCO's kinds of sizes; of label maps, empty.
    """

    images: int
    labeled: int
    objects: dict[str, int]
    in_images: dict[str, int]
    sizes: dict[str, int]
    odd: tuple[Issue, ...]


def statistics_of(
    records: Sequence[dict],
    class_names: Sequence[str],
    *,
    scale_of: Callable[[int, int], float] = lambda height, width: 1.0,
    tokens_of: Callable[[str], int] = len,
) -> Statistics:
    """Count the objects, or pixels, of a dataset, and find what is odd.

    Args:
        records: in Detectron2's format, with ``annotations`` or ``sem_seg_file_name``.
        class_names: by id.
        scale_of: returns the factor that the model's image is larger by, from height and width.
        tokens_of: returns the number of tokens that the text encoder reads a name as.

    Raises:
        ValueError: a label image holds no labels.
    """
    of_pixels = any("sem_seg_file_name" in record for record in records)
    if of_pixels:
        counts = [_pixels(r, len(class_names)) for r in tqdm(records, unit="label image", delay=2)]
    else:
        counts = [Counter(a["category_id"] for a in record.get("annotations", [])) for record in records]
    objects, in_images = Counter[int](), Counter[int]()
    for count in counts:
        objects.update(count)
        in_images.update(count.keys())
    empty = [record["file_name"] for record, count in zip(records, counts, strict=True) if not count]
    long = [f"{name} ({n})" for name in class_names if (n := tokens_of(name)) > LONG_NAME]
    odd = {
        "images are the same, byte by byte": _same_files(records),
        "images have nothing labeled": empty,
        "classes are in no image": [name for i, name in enumerate(class_names) if not in_images[i]],
        "classes are in one image alone": [name for i, name in enumerate(class_names) if in_images[i] == 1],
        f"names are read as more than {LONG_NAME} tokens": long,
    }
    sizes = {} if of_pixels else dict.fromkeys(AREAS, 0)
    if not of_pixels:
        odd |= _odd_boxes(records, class_names, scale_of)
        for annotation in (a for record in records for a in record.get("annotations", [])):
            x1, y1, x2, y2 = _box(annotation)
            sizes[size_of((x2 - x1) * (y2 - y1))] += 1
    return Statistics(
        images=len(records),
        labeled=len(records) - len(empty),
        objects={name: objects[i] for i, name in enumerate(class_names)},
        in_images={name: in_images[i] for i, name in enumerate(class_names)},
        sizes=sizes,
        odd=tuple(Issue(what, tuple(where)) for what, where in odd.items() if where),
    )


def size_of(area: float) -> str:
    """Return COCO's kind of size of an object with this area in pixels, a key of :data:`AREAS`."""
    return next(kind for kind, most in AREAS.items() if area < most)


def _pixels(record: dict, num_classes: int) -> Counter[int]:
    """Return the number of pixels of each class that has one."""
    pixels = np.bincount(read_labels(record["sem_seg_file_name"]).ravel(), minlength=num_classes)
    return Counter({i: n for i, n in enumerate(pixels[:num_classes].tolist()) if n})


def _box(annotation: dict) -> list[float]:
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _same_files(records: Sequence[dict]) -> list[str]:
    def digest(record: dict) -> str:
        with PathManager.open(record["file_name"], "rb") as file:
            return hashlib.sha1(file.read(), usedforsecurity=False).hexdigest()

    alike = defaultdict(list)
    with ThreadPoolExecutor(16) as pool:  # reading waits for the disk
        digests = tqdm(pool.map(digest, records), total=len(records), unit="image", delay=2)
        for record, key in zip(records, digests, strict=True):
            alike[key].append(record["file_name"])
    return [" = ".join(names) for names in alike.values() if len(names) > 1]


def _odd_boxes(
    records: Iterable[dict], class_names: Sequence[str], scale_of: Callable[[int, int], float]
) -> dict[str, list[str]]:
    outside, twice, tiny = [], [], []
    unused = defaultdict(list)
    for record in records:
        height, width = record["height"], record["width"]
        seen: Counter[tuple] = Counter()
        for annotation in record.get("annotations", []):
            x1, y1, x2, y2 = box = _box(annotation)
            where = f"{class_names[annotation['category_id']]} in {record['file_name']}"
            if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:  # files may count pixels from 1
                outside.append(where)
            if min(x2 - x1, y2 - y1) * scale_of(height, width) < TINY:
                tiny.append(where)
            if reason := unused_reason(annotation, record):
                unused[f"{reason} are left out of training"].append(where)
            seen[where, *box] += 1
        twice += [key[0] for key, n in seen.items() if n > 1]
    return {
        **unused,
        "boxes reach beyond their image": outside,
        "boxes are there twice, of one class": twice,
        f"objects are narrower than {TINY} pixels as the model gets them": tiny,
    }

"""What a data set holds, and what in it is odd, before anything is trained."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from .semantic import read_labels
from .unused import unused_reason

AREAS = {"small": 32**2, "medium": 96**2, "large": float("inf")}
"""COCO's kinds of objects, and the area in pixels that each is below."""

TINY = 8
"""Pixels, as the model gets the image, that an object's sides need: a cell of a detector's finest map."""

LONG_NAME = 3
"""Tokens of a name beyond which the released models would have cut it."""


@dataclass(frozen=True)
class Oddity:
    """Something to look at before training.

    Attributes:
        what: in words.
        where: images, classes or names, all of them.
    """

    what: str
    where: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.where) - 3} more" if len(self.where) > 3 else ""
        return f"{len(self.where)} {self.what}: {'; '.join(self.where[:3])}{more}"


@dataclass(frozen=True)
class Statistics:
    """
    Attributes:
        images: how many.
        labeled: how many of them have an object, or a pixel of a class.
        objects: by class name; of label maps, pixels.
        in_images: by class name, the images that it is in.
        sizes: objects by COCO's kinds of sizes; of label maps, empty.
        odd: what is odd.
    """

    images: int
    labeled: int
    objects: dict[str, int]
    in_images: dict[str, int]
    sizes: dict[str, int]
    odd: tuple[Oddity, ...]


def statistics_of(
    records: Sequence[dict],
    class_names: Sequence[str],
    *,
    scale_of: Callable[[int, int], float] = lambda height, width: 1.0,
    tokens_of: Callable[[str], int] = len,
) -> Statistics:
    """Count a data set's objects, or pixels, and find what is odd.

    Args:
        records: of a data set, in Detectron2's format, with ``annotations`` or ``sem_seg_file_name``.
        class_names: by id.
        scale_of: how many times as large as the file, of a height and a width, the model gets an image.
        tokens_of: how many tokens the text encoder reads a name as.

    Raises:
        ValueError: a label image holds no labels.
    """
    of_pixels = any("sem_seg_file_name" in record for record in records)
    count = _count_pixels if of_pixels else _count_objects
    objects, in_images, sizes, labeled = count(records, len(class_names))
    tokens = {name: tokens_of(name) for name in class_names}
    odd = [
        Oddity("images are the same, byte by byte", _same_files(records)),
        Oddity("images have nothing labeled", tuple(r["file_name"] for r in records if not labeled[id(r)])),
        Oddity("classes are in no image", _named(class_names, in_images, 0)),
        Oddity("classes are in one image alone", _named(class_names, in_images, 1)),
        Oddity(
            f"names are read as more than {LONG_NAME} tokens",
            tuple(f"{name} ({length})" for name, length in tokens.items() if length > LONG_NAME),
        ),
    ]
    if not of_pixels:
        odd += _odd_boxes(records, class_names, scale_of)
    return Statistics(
        images=len(records),
        labeled=sum(labeled.values()),
        objects={name: objects[i] for i, name in enumerate(class_names)},
        in_images={name: in_images[i] for i, name in enumerate(class_names)},
        sizes=dict(sizes),
        odd=tuple(oddity for oddity in odd if oddity.where),
    )


_Counts = tuple[Counter[int], Counter[int], Counter[str], dict[int, bool]]


def _count_objects(records: Sequence[dict], num_classes: int) -> _Counts:
    objects: Counter[int] = Counter()
    in_images: Counter[int] = Counter()
    sizes: Counter[str] = Counter(dict.fromkeys(AREAS, 0))
    labeled = {}
    for record in records:
        annotations = record.get("annotations", [])
        classes = [annotation["category_id"] for annotation in annotations]
        objects.update(classes)
        in_images.update(set(classes))
        sizes.update(size_of(_area(_box(annotation))) for annotation in annotations)
        labeled[id(record)] = bool(annotations)
    return objects, in_images, sizes, labeled


def _count_pixels(records: Sequence[dict], num_classes: int) -> _Counts:
    objects: Counter[int] = Counter()
    in_images: Counter[int] = Counter()
    labeled = {}
    for record in tqdm(records, unit="label image", delay=2):
        labels = read_labels(record["sem_seg_file_name"])
        pixels = np.bincount(labels.ravel(), minlength=num_classes)[:num_classes]
        objects.update(dict(enumerate(pixels.tolist())))
        in_images.update(np.flatnonzero(pixels).tolist())
        labeled[id(record)] = bool(pixels.any())
    return objects, in_images, Counter(), labeled


def _box(annotation: dict) -> list[float]:
    return BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def size_of(area: float) -> str:
    """Which of COCO's kinds of sizes an object of so many pixels has: a key of :data:`AREAS`."""
    return next(kind for kind, most in AREAS.items() if area < most)


def _named(class_names: Sequence[str], in_images: Counter[int], images: int) -> tuple[str, ...]:
    return tuple(name for i, name in enumerate(class_names) if in_images[i] == images)


def _same_files(records: Sequence[dict]) -> tuple[str, ...]:
    def digest(record: dict) -> str:
        with PathManager.open(record["file_name"], "rb") as file:
            return hashlib.sha1(file.read(), usedforsecurity=False).hexdigest()

    alike = defaultdict(list)
    with ThreadPoolExecutor(16) as pool:  # which waits for the disk
        digests = tqdm(pool.map(digest, records), total=len(records), unit="image", delay=2)
        for record, key in zip(records, digests, strict=True):
            alike[key].append(record["file_name"])
    return tuple(" = ".join(names) for names in alike.values() if len(names) > 1)


def _odd_boxes(
    records: Iterable[dict], class_names: Sequence[str], scale_of: Callable[[int, int], float]
) -> list[Oddity]:
    outside, twice, tiny = [], [], []
    unused: defaultdict[str, list[str]] = defaultdict(list)
    for record in records:
        height, width = record["height"], record["width"]
        seen: Counter[tuple] = Counter()
        for annotation in record.get("annotations", []):
            x1, y1, x2, y2 = box = _box(annotation)
            where = f"{class_names[annotation['category_id']]} in {record['file_name']}"
            if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:  # a pixel is how files count
                outside.append(where)
            if min(x2 - x1, y2 - y1) * scale_of(height, width) < TINY:
                tiny.append(where)
            if reason := unused_reason(annotation, record):
                unused[reason].append(where)
            seen[annotation["category_id"], *box] += 1
        twice += [f"{class_names[key[0]]} in {record['file_name']}" for key, n in seen.items() if n > 1]
    return [
        *(Oddity(f"{reason} are left out of training", tuple(where)) for reason, where in unused.items()),
        Oddity("boxes reach beyond their image", tuple(outside)),
        Oddity("boxes are there twice, of one class", tuple(twice)),
        Oddity(f"objects are narrower than {TINY} pixels as the model gets them", tuple(tiny)),
    ]

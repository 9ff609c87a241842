"""Own data as they are read: whole or in part, and in the classes of the training data."""

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path

from .changes import Changes
from .coco_dataset import CocoDataset
from .coco_json import CONVERT, read_json, without_garbage_collection
from .coco_reader import normalize
from .coco_source import CocoSource, find_files, listed
from .dataset_folder import read_source
from .pictures import image_size
from .unused import unused_reason

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoPart:
    """Own data, or a part of them.

    Attributes:
        values: of DATASETS.OWN.TRAIN or VAL.
        split: "train" or "val", where the values name several.
        stamp: changes when their files do.
        classes_of: the part whose classes these data are labeled in; None: their own.
        images: the paths of the images in this part, as :meth:`CocoDataset.key_of` has them; None: all.
    """

    values: tuple[str, ...]
    split: str
    stamp: Hashable
    classes_of: "CocoPart | None" = None
    images: frozenset[str] | None = None

    def read(self) -> CocoDataset:
        """Read and normalize the data.

        Raises:
            FileNotFoundError, ValueError: see :func:`own_boxes`.
        """
        dataset = read_normalized(self.values, self.split, self.stamp)
        if self.classes_of:
            dataset = _with_classes_of(dataset, self.classes_of)
        if self.images is None:
            return dataset
        images = [image for image in dataset.images if dataset.key_of(image) in self.images]
        ids = {image["id"] for image in images}
        annotations = [a for a in dataset.annotations if a["image_id"] in ids]
        return replace(dataset, images=images, annotations=annotations)

    def records(self) -> list[dict]:
        """Return the images in Detectron2's format, and log what was changed."""
        dataset = self.read()
        if dataset.changes:
            _log_once(f"{dataset.source.description} is read with these changes:\n{dataset.changes}")
        with without_garbage_collection():
            return dataset.records()

    def content(self) -> dict:
        """Return the data in COCO's format, for an evaluator."""
        return self.read().content()


@dataclass(frozen=True)
class Summary:
    """
    Attributes:
        description: the file or folder.
        image_root: the folder of images.
        class_names, class_ids: in the order of the class indices.
        images_of: in how many images there is one of each class.
        images: paths of the images, each with whether there are objects apart from crowds.
        annotations: how many there are.
        unused: how many of them are not learned from, by reason.
        mask_faults: the objects without a valid mask, and why.
        changes: what is not as in the file, as a table; empty if nothing is.
    """

    description: str
    image_root: Path
    class_names: tuple[str, ...]
    class_ids: tuple[int | str, ...]
    images_of: tuple[int, ...]
    images: dict[str, bool]
    annotations: int
    unused: Counter[str]
    mask_faults: tuple[str, ...]
    changes: str


def open_source(values: Sequence[str], split: str, stamp: Hashable) -> CocoSource:
    """Read what DATASETS.OWN.TRAIN or VAL names, without normalizing it.

    Args:
        split: "train" or "val", where the values name several. Without "val", it is "test", or else "train".
        stamp: changes when the files do; folders are read once for each.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file is not in COCO's format.
    """
    if sources := read_folder(tuple(values), stamp):
        return next(sources[s] for s in (split, "test", "train") if s in sources)
    path, images = (Path(part).expanduser().resolve() for part in values)
    if not path.is_file():
        raise FileNotFoundError(f"Own data: there is no file {values[0]}. {CONVERT}")
    if not images.is_dir():
        raise FileNotFoundError(f"Own data: there is no folder {values[1]}, of the images of {values[0]}.")
    return CocoSource(read_json(path), images, str(path))


@lru_cache(maxsize=4)
def read_folder(values: tuple[str, ...], stamp: Hashable) -> dict[str, CocoSource] | None:
    return read_source(values)


def stamp_of(values: Sequence[str]) -> Hashable:
    """Return what changes when the files of own data do: of folders, of the files in them."""
    path = Path(values[0]).expanduser()
    files = [path] if len(values) == 2 else find_files(path if path.is_dir() else path.parent)
    return hash(tuple((str(file), file.stat().st_mtime_ns) for file in files if file.exists()))


@lru_cache(maxsize=2)
def read_normalized(values: tuple[str, ...], split: str, stamp: Hashable) -> CocoDataset:
    with without_garbage_collection():
        return normalize(open_source(values, split, stamp), image_size)


@lru_cache(maxsize=8)
def summarize(part: CocoPart) -> Summary:
    dataset = part.read()
    sizes = {image["id"]: image for image in dataset.images}
    reasons = (unused_reason(a, sizes[a["image_id"]]) for a in dataset.annotations)
    images_of = Counter(
        class_ for _, class_ in {(a["image_id"], a["category_id"]) for a in dataset.annotations}
    )
    learnable = {a["image_id"] for a in dataset.annotations if not a["iscrowd"]}
    return Summary(
        description=dataset.source.description,
        image_root=dataset.source.image_root,
        class_names=dataset.class_names,
        class_ids=tuple(category["id"] for category in dataset.categories),
        images_of=tuple(images_of[category["id"]] for category in dataset.categories),
        images={dataset.key_of(image): image["id"] in learnable for image in dataset.images},
        annotations=len(dataset.annotations),
        unused=Counter(filter(None, reasons)),
        mask_faults=tuple(dataset.mask_faults),
        changes=str(dataset.changes) if dataset.changes else "",
    )


def _with_classes_of(dataset: CocoDataset, training: CocoPart) -> CocoDataset:
    """Give data the classes of the training data, by name.

    A category keeps its id. Classes without a category get one with a free id.

    Raises:
        ValueError: there are objects of a category that the training data do not have; two categories share
            a name.
    """
    train = summarize(training)
    if dataset.class_names == train.class_names:
        return dataset
    by_name = {category["name"]: category for category in dataset.categories}
    for names, description in (
        (dataset.class_names, dataset.source.description),
        (train.class_names, train.description),
    ):
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise ValueError(
                f"{description} has several categories with the name {twice[0]!r}, and the classes of both "
                "files are matched by name. Make them one category."
            )
    used = Counter(annotation["category_id"] for annotation in dataset.annotations)
    unknown = [name for name, c in by_name.items() if name not in train.class_names and used[c["id"]]]
    if unknown:
        raise ValueError(
            f"{dataset.source.description} has objects of {listed([*map(repr, unknown)], 3)}, which are not "
            f"among the categories of {train.description}: {listed([*map(repr, train.class_names)])}. Give "
            "the categories the same names in both, or take these objects out."
        )
    type_ = type(dataset.categories[0]["id"])
    taken = {category["id"] for category in dataset.categories}
    free = (id_ for id_ in map(type_, count(1)) if id_ not in taken)
    categories = [by_name.get(name) or {"id": next(free), "name": name} for name in train.class_names]
    changes = Changes({**dataset.changes.first})  # the data set may be kept for another part
    changes.add(f"categories are not those of {train.description}: matched by name", listed([*by_name], 3))
    return replace(dataset, categories=categories, changes=changes)


@lru_cache(maxsize=64)
def _log_once(message: str) -> None:
    """Log a message, once in a process: data sets are loaded several times."""
    logger.info(message)

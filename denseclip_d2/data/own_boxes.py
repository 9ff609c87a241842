"""Own data with boxes or masks: COCO files, and the folders that are read as such."""

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from .coco_json import CONVERT, read_json, without_garbage_collection
from .coco_reader import LISTED, CocoDataset, normalize
from .coco_source import CocoSource, find_files
from .dataset_folder import read_source
from .own import OwnData, held_out_images, register
from .pictures import image_size
from .unused import nothing_to_learn, unused_reason

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
        dataset = _read(self.values, self.split, self.stamp)
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
class _Summary:
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


def own_boxes(
    train: Sequence[str],
    val: Sequence[str] = (),
    *,
    masks: bool,
    filter_empty: bool,
    held_out: float,
    seed: int,
) -> OwnData:
    """Register data with boxes, or boxes and masks.

    Args:
        train, val: a COCO file and the folder that its file names begin from, or one path that
            :func:`read_source` reads. Without ``val``, it is the validation part of ``train``, where there is
            one, or else a part of the training images that is held out.
        masks: whether the model learns masks.
        filter_empty: whether images without boxes are left out of training.
        held_out: that part, below 1; 0 holds nothing out.
        seed: decides which images are held out.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file is not in COCO's format, has nothing to learn from, or lacks masks; ``val`` has a
            class that ``train`` has not; images cannot be shared; a dataset's name is taken.
    """
    whole = CocoPart(tuple(train), "train", _stamp(train))
    data = _summary(whole)
    _check_learnable(data)
    if masks:
        _check_masks(data)
    name = _register(whole)
    parts = [(name, whole)]
    if not val and "val" in (_read_folder(whole.values, whole.stamp) or {}):
        val = train
    if val:
        part = CocoPart(tuple(val), "val", _stamp(val), whole)
        if masks:
            _check_masks(_summary(part))
        parts.append((_register(part), part))
    elif held_out:
        out = frozenset(held_out_images(data.images, held_out, seed))
        label = f"{100 * held_out:g}_seed{seed}"
        kept = replace(whole, images=frozenset(data.images) - out)
        parts = [(f"{name}_without_{label}", kept), (f"{name}_held_out_{label}", replace(whole, images=out))]
        for part_name, part in parts:
            _register_as(part_name, part)
    used = _summary(parts[0][1]).images
    num_images = sum(learnable or not filter_empty for learnable in used.values())
    _read.cache_clear()  # large files take gigabytes
    return OwnData(parts[0][0], tuple(name for name, _ in parts[1:]), data.class_names, num_images)


def open_source(values: Sequence[str], split: str, stamp: Hashable) -> CocoSource:
    """Read what DATASETS.OWN.TRAIN or VAL names, without normalizing it.

    Args:
        split: "train" or "val", where the values name several. Without "val", it is "test", or else "train".
        stamp: changes when the files do; folders are read once for each.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file is not in COCO's format.
    """
    if sources := _read_folder(tuple(values), stamp):
        return next(sources[s] for s in (split, "test", "train") if s in sources)
    path, images = (Path(part).expanduser().resolve() for part in values)
    if not path.is_file():
        raise FileNotFoundError(f"Own data: there is no file {values[0]}. {CONVERT}")
    if not images.is_dir():
        raise FileNotFoundError(f"Own data: there is no folder {values[1]}, of the images of {values[0]}.")
    return CocoSource(read_json(path), images, str(path))


@lru_cache(maxsize=4)
def _read_folder(values: tuple[str, ...], stamp: Hashable) -> dict[str, CocoSource] | None:
    return read_source(values)


def _stamp(values: Sequence[str]) -> Hashable:
    """Return what changes when the files of own data do: of folders, of the files in them."""
    path = Path(values[0]).expanduser()
    files = [path] if len(values) == 2 else find_files(path if path.is_dir() else path.parent)
    return hash(tuple((str(file), file.stat().st_mtime_ns) for file in files if file.exists()))


@lru_cache(maxsize=2)
def _read(values: tuple[str, ...], split: str, stamp: Hashable) -> CocoDataset:
    with without_garbage_collection():
        return normalize(open_source(values, split, stamp), image_size)


@lru_cache(maxsize=8)
def _summary(part: CocoPart) -> _Summary:
    dataset = part.read()
    sizes = {image["id"]: image for image in dataset.images}
    reasons = (unused_reason(a, sizes[a["image_id"]]) for a in dataset.annotations)
    images_of = Counter(
        class_ for _, class_ in {(a["image_id"], a["category_id"]) for a in dataset.annotations}
    )
    learnable = {a["image_id"] for a in dataset.annotations if not a["iscrowd"]}
    return _Summary(
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


def _check_learnable(data: _Summary) -> None:
    if data.annotations > data.unused.total():
        return
    changes = f" These were changed on reading:\n{data.changes}" if data.changes else ""
    raise ValueError(nothing_to_learn(data.description, data.annotations, data.unused) + changes)


def _check_masks(data: _Summary) -> None:
    if not data.mask_faults:
        return
    listed = "; ".join(data.mask_faults[:LISTED])
    more = f"; and {len(data.mask_faults) - LISTED} more" if len(data.mask_faults) > LISTED else ""
    raise ValueError(
        f"MODEL.MASK_ON needs masks, and {len(data.mask_faults)} of the {data.annotations} annotations in "
        f"{data.description} have no valid mask: {listed}{more}. Set MODEL.MASK_ON False, to find boxes "
        "alone, or take a RetinaNet."
    )


def _register(part: CocoPart) -> str:
    """Register a part under the end of its path, which is as long as tells it from other data.

    Returns: the name.
    """
    path = Path(part.values[0]).expanduser().resolve()
    if len(part.values) == 2:
        parts = path.with_suffix("").parts
    else:
        parts = (*(path if path.is_dir() else path.parent).parts, part.split)
    for length in range(2, len(parts)):
        name = "_".join(parts[-length:])
        if name not in DatasetCatalog or MetadataCatalog.get(name).get("source") == _source(part):
            break
    _register_as(name, part)
    return name


def _source(part: CocoPart) -> str:
    return " ".join([*part.values, *([part.split] if len(part.values) == 1 else [])])


def _register_as(name: str, part: CocoPart) -> None:
    data, whole = _summary(part), _summary(replace(part, images=None))
    as_it_is = len(part.values) == 2 and not data.changes and part.images is None
    # Detectron2's evaluator reads "json_file"; without one, it writes what it needs into OUTPUT_DIR.
    truth = {"json_file": data.description} if as_it_is else {"coco_content": part.content}
    register(
        name,
        part.records,
        _source(part),
        **truth,
        image_root=str(data.image_root),
        evaluator_type="coco",
        thing_classes=list(data.class_names),
        thing_dataset_id_to_contiguous_id={id_: i for i, id_ in enumerate(data.class_ids)},
        # As Detectron2 has LVIS's, for its federated loss.
        class_image_count=[{"id": i, "image_count": n} for i, n in enumerate(whole.images_of)],
    )


def _with_classes_of(dataset: CocoDataset, training: CocoPart) -> CocoDataset:
    """Give data the classes of the training data, by name.

    A category keeps its id. Classes without a category get one with a free id.

    Raises:
        ValueError: there are objects of a category that the training data do not have.
    """
    train = _summary(training)
    if dataset.class_names == train.class_names:
        return dataset
    by_name = {category["name"]: category for category in dataset.categories}
    used = Counter(annotation["category_id"] for annotation in dataset.annotations)
    unknown = [name for name, c in by_name.items() if name not in train.class_names and used[c["id"]]]
    if unknown:
        raise ValueError(
            f"{dataset.source.description} has objects of {', '.join(map(repr, unknown[:LISTED]))}"
            f"{' and others' if len(unknown) > LISTED else ''}, which are not among the categories of "
            f"{train.description}: {', '.join(map(repr, train.class_names[:10]))}. Give the categories "
            "the same names in both, or take these objects out."
        )
    type_ = type(dataset.categories[0]["id"])
    taken = {category["id"] for category in dataset.categories}
    free = (id_ for id_ in map(type_, count(1)) if id_ not in taken)
    categories = [by_name.get(name) or {"id": next(free), "name": name} for name in train.class_names]
    dataset.changes.add(
        f"categories are not those of {train.description}: matched by name", ", ".join(by_name)[:60]
    )
    return replace(dataset, categories=categories)


@lru_cache(maxsize=64)
def _log_once(message: str) -> None:
    """Log a message, once in a process: data sets are loaded several times."""
    logger.info(message)

"""Register own data: COCO files, YOLO and Pascal VOC folders, folders of label images, and held-out parts."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from .coco_dataset import CocoDataset
from .coco_source import listed, own_path
from .dataset_folder import has_val, read_own, stamp_of
from .unused_annotations import no_training_annotations, unused_reason


@dataclass(frozen=True)
class CustomDataset:
    """Own data, registered with Detectron2.

    Attributes:
        train, test: names of the datasets. ``test`` is empty if there are no images to evaluate on.
        class_names: in the order of the class ids.
        num_images: number of training images.
    """

    train: str
    test: tuple[str, ...]
    class_names: tuple[str, ...]
    num_images: int


def custom_label_maps(folder: str, *, held_out: float, seed: int) -> CustomDataset:
    """Return the "train" and "val" datasets of a folder that is in ``DATASETS.SEMANTIC_FOLDERS``.

    Args:
        held_out, seed: see :func:`custom_boxes`. They apply if the folder has no "val".

    Raises:
        ValueError: there is no "train", or it has no images or too few to split.
    """
    root = own_path(folder)
    whole, val = f"{root.name}_train", f"{root.name}_val"
    if whole not in DatasetCatalog:
        raise ValueError(f"DATASETS.CUSTOM.SEMANTIC (--train-semantic): {folder} has no images/train.")
    metadata = MetadataCatalog.get(whole).as_dict()
    image_root, class_names = metadata["image_root"], tuple(metadata["stuff_classes"])

    def key(record: dict) -> str:
        return str(Path(record["file_name"]).relative_to(image_root))

    images = [*map(key, DatasetCatalog.get(whole))]
    if val in DatasetCatalog or not held_out:
        return CustomDataset(whole, (val,) if val in DatasetCatalog else (), class_names, len(images))
    out = held_out_images(images, held_out, seed)
    shared = {k: value for k, value in metadata.items() if k not in ("name", "source")}
    kept_name, out_name = _part_names(whole, held_out, seed)
    for name, is_out in ((kept_name, False), (out_name, True)):

        def load(is_out: bool = is_out) -> list[dict]:
            return [r for r in DatasetCatalog.get(whole) if (key(r) in out) == is_out]

        register(name, load, image_root, **shared)
    return CustomDataset(kept_name, (out_name,), class_names, len(images) - len(out))


def custom_boxes(
    train: Sequence[str],
    val: Sequence[str] = (),
    *,
    masks: bool,
    filter_empty: bool,
    held_out: float,
    seed: int,
    any_names: bool = False,
) -> CustomDataset:
    """Register data with boxes, or with boxes and masks.

    Args:
        train, val: a COCO file and the folder of its images, or one path that :func:`read_source` reads.
            Without ``val``, the validation split of ``train`` is evaluated on. If there is no such split, a
            part of the training images is held out.
        masks: whether the model learns masks.
        filter_empty: whether training leaves out images without objects.
        held_out: this part, below 1; 0 holds nothing out.
        seed: decides which images are held out.
        any_names: the model takes any names: ``val`` may have other classes than ``train``.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file is malformed, has nothing to learn from, or lacks masks; ``val`` has a class that
            ``train`` does not have; there are too few images to split.
    """
    stamp = stamp_of(train)
    read = partial(read_own, tuple(train), "train", stamp)
    data = read()
    _check_learnable(data)
    if masks:
        _check_masks(data)
    keys = {image["id"]: data.key_of(image) for image in data.images}
    with_objects = {keys[a["image_id"]] for a in data.annotations if not a["iscrowd"]}
    used = with_objects if filter_empty else {*keys.values()}
    add = partial(_register_boxes, class_image_count=_image_counts(data))
    name = add(_free_name(train, "train"), train, "train", read)
    test: tuple[str, ...] = ()
    if val or has_val(tuple(train), stamp):
        val = val or train
        read_val = _val_reader(val, data, any_names=any_names)
        test = (_register_val(val, read_val, masks=masks, add=add),)
    elif held_out:
        out = held_out_images(keys.values(), held_out, seed)
        name, out_name = _part_names(name, held_out, seed)
        add(name, train, "train", lambda: read().part(lambda key: key not in out))
        test = (add(out_name, train, "train", lambda: read().part(lambda key: key in out)),)
        used -= out
    return CustomDataset(name, test, data.class_names, len(used))


def custom_test_boxes(val: Sequence[str], *, masks: bool) -> str:
    """Register data to evaluate a model of any names on, and return their name in Detectron2's catalog.

    Raises:
        FileNotFoundError, ValueError: see :func:`custom_boxes`.
    """
    return _register_val(val, partial(read_own, tuple(val), "val", stamp_of(val)), masks=masks)


def _register_val(
    val: Sequence[str], read: Callable[[], CocoDataset], *, masks: bool, add: Callable[..., str] | None = None
) -> str:
    """Register what is evaluated on, by ``add`` or :func:`_register_boxes`. Return the name."""
    if masks:
        _check_masks(read())
    return (add or _register_boxes)(_free_name(val, "val"), val, "val", read)


def _val_reader(val: Sequence[str], train: CocoDataset, *, any_names: bool) -> Callable[[], CocoDataset]:
    """Return what reads the images to evaluate on, with the classes of ``train`` if they have no others.

    The reader raises a ValueError for other classes unless the model takes any names.
    """
    read = partial(read_own, tuple(val), "val", stamp_of(val))
    if any_names and not {*read().class_names} <= {*train.class_names}:
        return read
    return partial(_read_val, tuple(val), stamp_of(val), train.class_names, train.source.description)


def _read_val(
    values: tuple[str, ...], stamp: Hashable, class_names: Sequence[str], whose: str
) -> CocoDataset:
    return read_own(values, "val", stamp).with_classes(class_names, whose)


def held_out_images(images: Collection[str], part: float, seed: int) -> set[str]:
    """Return the images to hold out: the same for the same seed, and nearly the same if images are added.

    Raises:
        ValueError: there are fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(
            f"{len(images)} training image: none can be held out to evaluate on. Give images to evaluate on "
            "(--val, or images/val), or set DATASETS.CUSTOM.VAL_FRACTION to 0."
        )

    def draw(image: str) -> bytes:
        # A name in another encoding than the file system's has surrogates.
        return hashlib.sha256(f"{seed}/{image}".encode(errors="surrogatepass")).digest()

    order = sorted(images, key=draw)
    return set(order[: min(max(round(part * len(order)), 1), len(order) - 1)])


def register(name: str, load: Callable[[], list[dict]], source: str, **metadata) -> None:
    """Register a dataset, or register it again because its files may have changed."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(source=source, **metadata)


def _register_boxes(
    name: str, values: Sequence[str], split: str, load: Callable[[], CocoDataset], **metadata
) -> str:
    """Register what ``load`` returns. Return the name."""
    data = load()
    # The evaluator reads the file itself only if the file is what the model is trained on.
    truth: dict = {"coco_content": lambda: load().content()}
    if len(values) == 2 and not (data.changes or data.is_part):
        truth = {"json_file": data.source.description}
    register(
        name,
        lambda: load().records(),
        _source_of(values, split),
        **truth,
        image_root=str(data.source.image_root),
        evaluator_type="coco",
        thing_classes=list(data.class_names),
        thing_dataset_id_to_contiguous_id=data.class_of,
        **metadata,
    )
    return name


def _image_counts(data: CocoDataset) -> list[dict]:
    """Return in how many images each class is, as Detectron2's metadata of LVIS do for the federated loss."""
    seen = Counter(class_ for _, class_ in {(a["image_id"], a["category_id"]) for a in data.annotations})
    return [{"id": i, "image_count": seen[id_]} for id_, i in data.class_of.items()]


def _check_learnable(data: CocoDataset) -> None:
    sizes = {image["id"]: image for image in data.images}
    unused = Counter(filter(None, (unused_reason(a, sizes[a["image_id"]]) for a in data.annotations)))
    if len(data.annotations) == unused.total():
        fault = no_training_annotations(data.source.description, len(data.annotations), unused)
        raise ValueError(fault + (f" Reading made these changes:\n{data.changes}" if data.changes else ""))


def _check_masks(data: CocoDataset) -> None:
    if faults := data.changes.mask_faults:
        raise ValueError(
            f"MODEL.MASK_ON needs masks, and {len(faults)} of the {len(data.annotations)} annotations in "
            f"{data.source.description} have no valid mask: {listed(faults, 3)}. "
            "Set MODEL.MASK_ON to False to find only boxes, or use a config of RetinaNet."
        )


def _free_name(values: Sequence[str], split: str) -> str:
    """Return the shortest end of the data's path that no other data have as their name, or a numbered one."""
    path = own_path(values[0])
    if len(values) == 2:
        parts = path.with_suffix("").parts
    else:
        parts = (*(path if path.is_dir() else path.parent).parts, split)
    ends = ("_".join(parts[-length:]) for length in range(2, len(parts)))
    names = chain(ends, (f"{parts[-1]}_{number}" for number in count(2)))
    own = _source_of(values, split)
    return next(n for n in names if n not in DatasetCatalog or MetadataCatalog.get(n).get("source") == own)


def _part_names(whole: str, part: float, seed: int) -> list[str]:
    """Return the names of what is trained on and of what is held out."""
    return [f"{whole}_{kind}_{100 * part:g}_seed{seed}" for kind in ("without", "held_out")]


def _source_of(values: Sequence[str], split: str) -> str:
    return " ".join(values if len(values) == 2 else (*values, split))

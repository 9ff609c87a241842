"""Data of one's own: a COCO-format file and the folder of its images, or a folder of label images."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

CONVERT = "docs/own_data.md says how to make one, also of YOLO's and Pascal VOC's folders."


@dataclass(frozen=True)
class OwnData:
    """Own data, as registered with Detectron2.

    Attributes:
        train, test: names of the datasets; without test where nothing is held out.
        class_names: in the order of the class ids.
        num_images: what is trained on.
    """

    train: str
    test: tuple[str, ...]
    class_names: tuple[str, ...]
    num_images: int


@dataclass(frozen=True)
class _CocoFile:
    """
    Attributes:
        ids, class_names: of the categories, by increasing id, as Detectron2 numbers the classes.
        images_of: in how many images there is one of each class.
        images: the images' file names, each with whether there are boxes to learn from.
        annotations, without_mask: how many there are, and how many of them have no segmentation.
    """

    ids: tuple[int, ...]
    class_names: tuple[str, ...]
    images_of: tuple[int, ...]
    images: dict[str, bool]
    annotations: int
    without_mask: int


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
        train, val: a COCO-format file and the folder that its file names begin from. Without ``val``, a
            part of the training images is held out in its place.
        masks: whether the model learns masks.
        filter_empty: whether images without boxes are left out of training.
        held_out: that part, below 1; 0 holds nothing out.
        seed: decides which images are held out.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a file is not in COCO's format, has no categories or annotations, or lacks masks; images
            cannot be shared; a dataset's name is taken.
    """
    name, file = _register_coco(train, masks)
    images = list(file.images)
    if val:
        test: tuple[str, ...] = (_register_coco(val, masks)[0],)
    else:
        name, test, images = _hold_out(name, images, held_out, seed)
    used = [image for image in images if file.images[image] or not filter_empty]
    return OwnData(name, test, file.class_names, len(used))


def own_labels(folder: str, *, held_out: float, seed: int) -> OwnData:
    """Own data with labels of pixels, of a folder in ``DATASETS.SEMANTIC_FOLDERS``: its "train" and "val".

    Args:
        held_out, seed: as for :func:`own_boxes`, where there is no "val".

    Raises:
        ValueError: there is no "train", or no image in it; images cannot be shared.
    """
    root = Path(folder).expanduser().resolve()
    name = f"{root.name}_train"
    test: tuple[str, ...] = (f"{root.name}_val",)
    if name not in DatasetCatalog:
        raise ValueError(f"DATASETS.OWN.SEMANTIC (--train-semantic): {folder} has no images/train.")
    metadata = MetadataCatalog.get(name)
    images = [str(Path(r["file_name"]).relative_to(metadata.image_root)) for r in DatasetCatalog.get(name)]
    if test[0] not in DatasetCatalog:
        name, test, images = _hold_out(name, images, held_out, seed)
    return OwnData(name, test, tuple(metadata.stuff_classes), len(images))


def held_out_images(images: Collection[str], part: float, seed: int) -> set[str]:
    """The images that are not trained on: the same for the same seed, and nearly so when some are added.

    Raises:
        ValueError: there are fewer than two.
    """
    if len(images) < 2:
        raise ValueError(
            f"{len(images)} training image: none can be held out to evaluate on. Give --val, or set "
            "DATASETS.OWN.HELD_OUT to 0."
        )
    order = sorted(images, key=lambda image: hashlib.sha256(f"{seed}/{image}".encode()).digest())
    return set(order[: min(max(round(part * len(order)), 1), len(order) - 1)])


def _hold_out(
    whole: str, images: list[str], part: float, seed: int
) -> tuple[str, tuple[str, ...], list[str]]:
    """Register what is trained on and what is held out of a registered dataset; without a file of their own.

    Returns: the dataset to train on, what is held out of it, and the images to train on.
    """
    if not part:
        return whole, (), images
    held_out = held_out_images(images, part, seed)
    metadata = MetadataCatalog.get(whole).as_dict()
    root = metadata["image_root"]
    # Without "json_file", Detectron2's evaluator writes the part it needs into OUTPUT_DIR.
    shared = {key: value for key, value in metadata.items() if key not in ("name", "json_file", "source")}
    train, test = (f"{whole}_{kind}_{100 * part:g}_seed{seed}" for kind in ("without", "held_out"))
    for name, is_held_out in ((train, False), (test, True)):

        def load(is_held_out: bool = is_held_out) -> list[dict]:
            records = DatasetCatalog.get(whole)
            names = (str(Path(record["file_name"]).relative_to(root)) for record in records)
            return [r for r, n in zip(records, names, strict=True) if (n in held_out) == is_held_out]

        _register(name, load, root, **shared)
    return train, (test,), [image for image in images if image not in held_out]


def _register_coco(source: Sequence[str], masks: bool) -> tuple[str, _CocoFile]:
    path, images = (Path(part).expanduser().resolve() for part in source)
    if not path.is_file():
        raise FileNotFoundError(f"Own data: there is no file {source[0]}. {CONVERT}")
    if not images.is_dir():
        raise FileNotFoundError(f"Own data: there is no folder {source[1]}, of the images of {source[0]}.")
    file = _read(path, path.stat().st_mtime_ns)
    if masks and file.without_mask:
        raise ValueError(
            f"MODEL.MASK_ON needs masks, and {file.without_mask} of the {file.annotations} annotations in "
            f"{path} have no segmentation. Set MODEL.MASK_ON False, to find boxes alone, or take a "
            "RetinaNet."
        )
    name = f"{path.parent.name}_{path.stem}"
    _register(
        name,
        partial(load_coco_json, str(path), str(images), name),
        f"{path} {images}",
        json_file=str(path),
        image_root=str(images),
        evaluator_type="coco",
        thing_classes=list(file.class_names),
        thing_dataset_id_to_contiguous_id={id_: i for i, id_ in enumerate(file.ids)},
        # As Detectron2 has LVIS's, for its federated loss.
        class_image_count=[{"id": i, "image_count": n} for i, n in enumerate(file.images_of)],
    )
    return name, file


def _register(name: str, load: Callable[[], list[dict]], source: str, **metadata) -> None:
    """Register a dataset, again where the file may have changed since.

    Raises:
        ValueError: another dataset has this name.
    """
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("source") != source:
            raise ValueError(
                f"Own data: {source} would be registered as {name!r}, which is the name of another "
                "dataset. Rename the file or its folder."
            )
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(source=source, **metadata)


@lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> _CocoFile:
    """
    Args:
        modified: when the file was last changed, so that it is then read again.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images, annotations, categories = (content[key] for key in ("images", "annotations", "categories"))
        categories = sorted(categories, key=lambda category: category["id"])
        learnt_from = {a["image_id"] for a in annotations if not a.get("iscrowd")}
        images_of = Counter(class_ for _, class_ in {(a["image_id"], a["category_id"]) for a in annotations})
        file = _CocoFile(
            ids=tuple(category["id"] for category in categories),
            class_names=tuple(category.get("name") for category in categories),
            images_of=tuple(images_of[category["id"]] for category in categories),
            images={image["file_name"]: image["id"] in learnt_from for image in images},
            annotations=len(annotations),
            without_mask=sum(not a.get("segmentation") for a in annotations),
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not in COCO's format, an object with the lists images, annotations and categories "
            f"({type(error).__name__}: {error}). {CONVERT}"
        ) from error
    for key in ("categories", "images", "annotations"):
        if not content[key]:
            raise ValueError(f"{path} has no {key}: there is nothing to learn. {CONVERT}")
    return file

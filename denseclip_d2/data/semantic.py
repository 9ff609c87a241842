"""Datasets for semantic segmentation: a folder of images, one of label images, and a list of names."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ..utils.text import read_text
from .coco_source import find_files
from .pictures import OTHER_SUFFIXES, ImageError, open_image, orientation_of, turned

logger = logging.getLogger(__name__)

MAX_LABELS_READ = 100  # before training, of each dataset


def register_semantic_folder(
    name: str,
    image_root: str | Path,
    label_root: str | Path,
    class_names: Sequence[str],
    *,
    ignore_label: int = 255,
    **metadata,
) -> None:
    """Register images and label images with Detectron2; the files need not exist yet.

    Args:
        name: what ``DATASETS.TRAIN`` and ``DATASETS.TEST`` call it.
        image_root: folder of the images, which may have folders in it.
        label_root: folder of the label images: PNGs of one channel (with a palette or without) under the same
            names, whose values are class ids.
        class_names: the class of id 0, of id 1, and so on.
        ignore_label: the value of pixels that are neither trained nor evaluated on.
        metadata: more of Detectron2's metadata, such as ``stuff_colors``.

    Raises:
        AssertionError: the name is already registered.
    """
    DatasetCatalog.register(name, lambda: load_semantic_folder(image_root, label_root))
    MetadataCatalog.get(name).set(
        stuff_classes=list(class_names),
        image_root=str(image_root),
        sem_seg_root=str(label_root),
        evaluator_type="sem_seg",
        ignore_label=ignore_label,
        **metadata,
    )


def register_semantic_folders(cfg: CfgNode) -> None:
    """Register every ``SPLIT`` of every folder ``F`` in ``DATASETS.SEMANTIC_FOLDERS`` as "F_SPLIT".

    Images are in ``F/images/SPLIT``, label images in ``F/labels/SPLIT``, and the names of the classes in
    ``F/classes.txt``, one a line. A dataset that is already registered from the same place is left alone.

    Raises:
        FileNotFoundError: a folder is not arranged like that.
        ValueError: a name is taken by another dataset; ``classes.txt`` is empty or not UTF-8.
    """
    for folder in cfg.DATASETS.SEMANTIC_FOLDERS:
        root = Path(folder).expanduser().resolve()
        names = root / "classes.txt"
        splits = sorted(path.name for path in root.glob("images/*") if path.is_dir())
        if not (splits and names.is_file()):
            raise FileNotFoundError(
                f"DATASETS.SEMANTIC_FOLDERS: {folder} needs {names} (a class name a line), and images and "
                f"labels of a split, such as 'train', in {root}/images/train and {root}/labels/train."
            )
        for split in splits:
            name, images = f"{root.name}_{split}", root / "images" / split
            if name not in DatasetCatalog:
                class_names = [line.strip() for line in read_text(names).strip().splitlines()]
                if not class_names:
                    raise ValueError(f"{names} is empty. It needs the name of a class on each line.")
                register_semantic_folder(name, images, root / "labels" / split, class_names)
            elif MetadataCatalog.get(name).get("image_root") != str(images):
                raise ValueError(
                    f"DATASETS.SEMANTIC_FOLDERS: {folder} would be registered as {name!r}, which "
                    "is the name of another dataset. Rename the folder."
                )


def load_semantic_folder(image_root: str | Path, label_root: str | Path) -> list[dict]:
    """The images that have a label image of the same name, in Detectron2's format.

    Detectron2's ``load_sem_seg`` pairs by position where there are as many of both, whatever their names.

    Raises:
        ValueError: there is none.
    """
    # Those of kinds that Pillow does not read as well: whoever reads them says so, and nothing is left out.
    images = _files(Path(image_root), {*OTHER_SUFFIXES, *Image.registered_extensions()})
    labels = _files(Path(label_root), {".png"})
    if unpaired := images.keys() ^ labels.keys():
        logger.warning(
            "%d files of %d images in %s and %d label images in %s have no counterpart (%s, say): left out.",
            *(len(unpaired), len(images), image_root, len(labels), label_root, min(unpaired)),
        )
    records = [
        {"file_name": str(images[name]), "sem_seg_file_name": str(labels[name])}
        for name in sorted(images.keys() & labels.keys())
    ]
    if not records:
        raise ValueError(f"no image in {image_root} has a label image (.png) of its name in {label_root}")
    return records


def read_labels(file_name: str, dtype: type = np.uint8) -> np.ndarray:
    """The (H, W) labels in a file, upright, a palette left aside; Detectron2's reader would take its colors.

    Also the ``sem_seg_loading_fn`` for Detectron2's ``SemSegEvaluator``, whose own fails with numpy 2.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or has several channels, or more than 8 bits a pixel.
    """
    with open_image(file_name) as image:
        check_label_mode(image.mode, file_name)
        return np.array(turned(image, orientation_of(image)), dtype=dtype)


def check_label_mode(mode: str, file_name: str) -> None:
    """Refuse an image whose pixels are no labels, by Pillow's mode.

    Raises:
        ImageError: the image has several channels, or more than 8 bits a pixel.
    """
    if mode not in ("1", "L", "P"):
        raise ImageError(
            f"{file_name} is an image of Pillow's mode {mode!r}",
            "Label images have one channel of 8 bits, with a palette ('P') or without ('L'), whose values "
            "are class ids: convert them.",
        )


def check_label_size(label_size: tuple[int, int], label: str, size: tuple[int, int], image: str) -> None:
    """Refuse a label image of another size than its image's; sizes are widths and heights.

    Raises:
        ImageError: they differ.
    """
    if label_size != size:
        raise ImageError(
            "{} is {}x{}, but its image {} {}x{} (width x height)".format(label, *label_size, image, *size),
            "Make such labels again from these images, or take both out of the dataset.",
        )


def check_labels(labels: np.ndarray, file_name: str, num_classes: int, ignore_label: int | None) -> None:
    """Refuse labels that are no class's.

    Raises:
        ValueError: labels are neither below ``num_classes`` nor ``ignore_label``.
    """
    wrong = np.unique(labels[(labels >= num_classes) & (labels != ignore_label)]).tolist()
    if wrong:
        listed = ", ".join(map(str, wrong[:10])) + (", ..." if len(wrong) > 10 else "")
        raise ValueError(
            f"{file_name} has labels out of range: {listed}. With {num_classes} classes, labels are 0 to "
            f"{num_classes - 1}, and {ignore_label} for pixels to ignore. Number the classes from 0, or "
            "correct the list of their names and MODEL.SEM_SEG_HEAD.NUM_CLASSES."
        )


def check_some_labels(labeled: Sequence[dict], names: Sequence[str]) -> None:
    """Check the labels of up to 100 images, and log which classes have no pixel in them.

    A fault of the whole data set shows in some labels; the mapper checks each when it reads it.

    Args:
        labeled: records with ``sem_seg_file_name``, at least one.
        names: the data sets that they are of.

    Raises:
        ValueError: labels are of no class.
    """
    metadata = MetadataCatalog.get(names[0])
    classes, ignore_label = metadata.get("stuff_classes", ()), metadata.get("ignore_label")
    records = labeled[:: math.ceil(len(labeled) / MAX_LABELS_READ)]
    found: set[int] = set()
    for file_name in (record["sem_seg_file_name"] for record in records):
        labels = read_labels(file_name)
        check_labels(labels, file_name, len(classes) or 256, ignore_label)  # without names, any may be one
        found.update(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())
    counts = {"read": len(records), "total": len(labeled)}
    _log_absent_classes(", ".join(names), found, classes, ignore_label, **counts)


def _log_absent_classes(
    name: str, found: set[int], class_names: Sequence[str], ignore_label: int | None, *, read: int, total: int
) -> None:
    """Log which classes have no pixel in label images; a warning, unless they may be rare ones.

    Args:
        name: the data set.
        found: the values in the label images that were read.
        read, total: how many label images were read, and how many there are. In a part of them less than
            half of the classes may be absent without a warning.
    """
    absent = [i for i in range(len(class_names)) if i not in found]
    if len(class_names) == 1:
        logger.warning(
            "%s has one class, %r, so that every pixel is of it. Give the background a class too.",
            name, class_names[0],
        )  # fmt: skip
    if not absent:
        return
    listed = ", ".join(f"{class_names[i]!r} ({i})" for i in absent[:10]) + (", ..." if absent[10:] else "")
    images = f"its {total} label images" if read == total else f"the {read} read of its {total} label images"
    hint = ""
    if len(absent) == 1 and ignore_label in found:
        hint = (
            f" Pixels of {ignore_label} are ignored: if they are meant to be {class_names[absent[0]]!r}, "
            f"change their value to {absent[0]}."
        )
    surely = read == total or 2 * len(absent) >= len(class_names)
    logger.log(
        logging.WARNING if surely else logging.INFO,
        "%s: %d of %d classes have no pixel in %s, and cannot be learned or evaluated there: %s.%s",
        *(name, len(absent), len(class_names), images, listed, hint),
    )


def _files(root: Path, extensions: set[str]) -> dict[str, Path]:
    """Return files below ``root`` with one of the extensions, by relative path without it.

    Of several with one name, such as a HEIC photo and its JPEG, one that Pillow reads is taken.
    """
    files = [path for path in find_files(root) if path.suffix.lower() in extensions]
    files.sort(key=lambda path: path.suffix.lower() not in OTHER_SUFFIXES)  # the last of a name stays
    return {str(path.relative_to(root).with_suffix("")): path for path in files}

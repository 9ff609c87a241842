"""Register, read and check datasets for semantic segmentation: images, label images, and a list of names."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from .coco_source import find_files, listed, own_path, read_lines
from .image_io import OTHER_SUFFIXES, ImageError, open_image, orientation_of, turned

logger = logging.getLogger(__name__)

MAX_LABELS_READ = 100  # before training, of each dataset


def register_semantic_folder(
    name: str,
    image_root: str | Path,
    label_root: str | Path,
    class_names: Sequence[str],
    *,
    ignore_label: int = 255,
    unlabeled: bool = False,
    **metadata,
) -> None:
    """Register images and label images with Detectron2. The files need not exist yet.

    Args:
        image_root: folder of the images and of folders of images.
        label_root: folder of the label images: PNGs of one channel, with or without a palette, under the
            names of the images. Their values are class ids.
        class_names: in the order of the class ids, from 0.
        ignore_label: the value of pixels that are left out of training and evaluation.
        unlabeled: the folder has images without labels too, which are left out without a warning.
        metadata: more of Detectron2's metadata, such as ``stuff_colors``.

    Raises:
        AssertionError: the name is already registered.
    """
    DatasetCatalog.register(name, lambda: load_semantic_folder(image_root, label_root, unlabeled))
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

    Images are in ``F/images/SPLIT``, label images in ``F/labels/SPLIT``, and the class names in
    ``F/classes.txt``, one a line. A dataset that is already registered from the same place stays.

    Raises:
        FileNotFoundError: a folder is not arranged like that.
        ValueError: another dataset has the name; ``classes.txt`` is empty or not UTF-8.
    """
    for folder in cfg.DATASETS.SEMANTIC_FOLDERS:
        root = own_path(folder)
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
                class_names = read_lines(names)
                if not class_names:
                    raise ValueError(f"{names} is empty. Write the name of a class on each line.")
                register_semantic_folder(name, images, root / "labels" / split, class_names)
            elif MetadataCatalog.get(name).get("image_root") != str(images):
                raise ValueError(
                    f"DATASETS.SEMANTIC_FOLDERS: {folder} would be registered as {name!r}, which "
                    "is the name of another dataset. Rename the folder."
                )


def load_semantic_folder(
    image_root: str | Path, label_root: str | Path, unlabeled: bool = False
) -> list[dict]:
    """Return the images that have a label image of the same name, in Detectron2's format.

    Detectron2's ``load_sem_seg`` pairs by position if the numbers are equal, whatever the names.

    Args:
        unlabeled: images without a label image are expected. Otherwise a warning counts them.

    Raises:
        ValueError: there is none.
    """
    # Images that Pillow cannot read are kept, so that the check of images reports them.
    images = _files(Path(image_root), {*OTHER_SUFFIXES, *Image.registered_extensions()})
    labels = _files(Path(label_root), {".png"})
    if unpaired := labels.keys() - images.keys() if unlabeled else images.keys() ^ labels.keys():
        logger.warning(
            "%d files of %d images in %s and %d label images in %s have no counterpart (%s, say): left out.",
            *(len(unpaired), len(images), image_root, len(labels), label_root, min(unpaired)),
        )
    names = sorted(images.keys() & labels.keys())
    if not names:
        raise ValueError(f"no image in {image_root} has a label image (.png) of its name in {label_root}")
    return [{"file_name": str(images[name]), "sem_seg_file_name": str(labels[name])} for name in names]


def read_labels(file_name: str, dtype: type = np.uint8) -> np.ndarray:
    """Return the (H, W) labels in a file, upright. Detectron2's reader would return colors of a palette.

    Detectron2's ``SemSegEvaluator`` gets it as ``sem_seg_loading_fn``, because its own fails with numpy 2.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken, or has several channels, or more than 8 bits a pixel.
    """
    with open_image(file_name) as image:
        check_label_mode(image.mode, file_name)
        return np.array(turned(image, orientation_of(image)), dtype=dtype)


def check_label_mode(mode: str, file_name: str) -> None:
    """Check Pillow's mode of a label image.

    Raises:
        ImageError: the image has several channels, or more than 8 bits a pixel.
    """
    if mode not in ("1", "L", "P"):
        raise ImageError(
            f"{file_name} is an image of Pillow's mode {mode!r}",
            "Convert label images to one channel of 8 bits, with a palette ('P') or without ('L'), whose "
            "values are class ids.",
        )


def check_label_size(label_size: tuple[int, int], label: str, size: tuple[int, int], image: str) -> None:
    """Check that a label image has its image's width and height.

    Raises:
        ImageError: they differ.
    """
    if label_size != size:
        raise ImageError(
            "{} is {}x{}, but its image {} {}x{} (width x height)".format(label, *label_size, image, *size),
            "Make such labels again from these images, or remove both from the dataset.",
        )


def check_labels(labels: np.ndarray, file_name: str, num_classes: int, ignore_label: int | None) -> None:
    """Check that labels are below ``num_classes``, or ``ignore_label``.

    Raises:
        ValueError: some are not.
    """
    wrong = np.unique(labels[(labels >= num_classes) & (labels != ignore_label)]).tolist()
    if wrong:
        raise ValueError(
            f"{file_name} has labels out of range: {listed(wrong)}. With {num_classes} classes, labels are 0 "
            f"to {num_classes - 1}, and {ignore_label} for pixels to ignore. Number the classes from 0, or "
            "correct the list of their names and MODEL.SEM_SEG_HEAD.NUM_CLASSES."
        )


def check_some_labels(labeled: Sequence[dict], names: Sequence[str]) -> None:
    """Check the labels of up to 100 images, and log which classes have no pixel in them.

    A fault of the whole dataset shows in some labels. The mapper checks each when it reads it.

    Args:
        labeled: records with ``sem_seg_file_name``, at least one.
        names: their datasets.

    Raises:
        ValueError: there are labels of no class.
    """
    metadata = MetadataCatalog.get(names[0])
    classes, ignore_label = metadata.get("stuff_classes", ()), metadata.get("ignore_label")
    records = labeled[:: math.ceil(len(labeled) / MAX_LABELS_READ)]
    found: set[int] = set()
    for file_name in (record["sem_seg_file_name"] for record in records):
        labels = read_labels(file_name)
        check_labels(labels, file_name, len(classes) or 256, ignore_label)  # without names, any is valid
        found.update(np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist())
    if len(classes) == 1:
        logger.warning(
            "%s has one class, %r, which every pixel has to be of. Give the background a class too.",
            ", ".join(names), classes[0],
        )  # fmt: skip
    absent = [i for i in range(len(classes)) if i not in found]
    if not absent:
        return
    hint = ""
    if len(absent) == 1 and ignore_label in found:
        hint = (
            f" Pixels of {ignore_label} are ignored. If they are meant to be {classes[absent[0]]!r}, "
            f"change their value to {absent[0]}."
        )
    whole = len(records) == len(labeled)
    images = f"its {len(labeled)}" if whole else f"the {len(records)} read of its {len(labeled)}"
    # Rare classes may be absent from a part of the images.
    level = logging.WARNING if whole or 2 * len(absent) >= len(classes) else logging.INFO
    logger.log(
        level,
        "%s: %d of %d classes have no pixel in %s label images, and cannot be learned or evaluated: %s.%s",
        *(", ".join(names), len(absent), len(classes), images),
        *(listed([f"{classes[i]!r} ({i})" for i in absent]), hint),
    )


def _files(root: Path, extensions: set[str]) -> dict[str, Path]:
    """Return files below ``root`` with one of the extensions, by relative path without it.

    Of several with one name, such as a HEIC photo and its JPEG, one that Pillow reads is taken.
    """
    files = [path for path in find_files(root) if path.suffix.lower() in extensions]
    files.sort(key=lambda path: path.suffix.lower() not in OTHER_SUFFIXES)  # the last of a name stays
    return {str(path.relative_to(root).with_suffix("")): path for path in files}

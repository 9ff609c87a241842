"""The "shapes" dataset: small generated images in COCO format.

A class name has a color, a texture and a shape, such as "red striped circle". No single word identifies a
class, so the text encoder has something to read. The dataset is generated in seconds. Like COCO, it has
images of several sizes, images without objects, overlaps, and crowd regions (``iscrowd=1``, run-length
encoded).

Every image has a label image for semantic segmentation. A pixel's label is the detector's class id of the
topmost object. Pixels without an object have the last class, "background", which is evaluated like the
others. ``shapes_panoptic`` has the panoptic annotations.
"""

import itertools
import json
import logging
from pathlib import Path

import numpy as np
from detectron2.data.datasets import register_coco_instances

from ..data.semantic import register_semantic_folder
from ..utils.atomic import atomic_dir
from .labels import IGNORED, SPLITS, annotation_file, categories_of, write_labels, write_seen
from .panoptic import register_panoptic, write_panoptic
from .scene import IMAGE_SIDES, Instance, draw_scene
from .vocabulary import BACKGROUND, SHAPES, Vocabulary

logger = logging.getLogger(__name__)

#: The 18 classes of "shapes", and the classes of its label images.
CLASS_NAMES, SEMANTIC_CLASS_NAMES = SHAPES.class_names, SHAPES.semantic_class_names

# Stored with the dataset. Raise it if the same parameters give other images.
VERSION = "1.0"


def shapes_info(*, num_train: int, num_val: int, seed: int, vocabulary: Vocabulary = SHAPES) -> dict:
    """Return the "info" entry of the annotation files, which identifies the dataset of these parameters."""
    return {
        "description": f"{vocabulary.name}: generated images of coloured, textured geometric shapes",
        "version": VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "seed": seed,
    }


def generate_shapes(
    root: Path, *, num_train: int = 2000, num_val: int = 200, seed: int = 0, vocabulary: Vocabulary = SHAPES
) -> None:
    """Write a dataset atomically: ``annotations/instances_{train,val}.json``, ``{train,val}/*.png``, and the
    folders of :func:`add_derived`.

    An image and its annotations depend only on the seed, the split and the number of the image. With the same
    numpy and Pillow they are the same bit for bit.

    Args:
        root: folder to write, missing or empty.
        num_train, num_val: number of training and of validation images.
        seed: non-negative seed of all random choices.
        vocabulary: the vocabulary.

    Raises:
        FileExistsError: ``root`` exists and is not an empty folder.
        ValueError: a number of images or the seed is negative.
    """
    if min(num_train, num_val, seed) < 0:
        raise ValueError(f"num_train={num_train}, num_val={num_val}, seed={seed}: none may be negative")
    root = Path(root).resolve()
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise FileExistsError(f"{root} exists and is not empty: delete it or choose another directory")

    info = shapes_info(num_train=num_train, num_val=num_val, seed=seed, vocabulary=vocabulary)
    with atomic_dir(root) as partial:
        (partial / "annotations").mkdir()
        for split, num_images in zip(SPLITS, (num_train, num_val), strict=True):
            (partial / split).mkdir()
            coco = _generate_split(partial / split, num_images, (seed, SPLITS.index(split)), vocabulary)
            annotation_file(partial, split).write_text(json.dumps({"info": info, **coco}), encoding="utf-8")
        add_derived(partial, vocabulary)
    logger.info("Wrote %d training and %d validation images to %s", num_train, num_val, root)


def add_derived(root: Path, vocabulary: Vocabulary) -> list[str]:
    """Write the folders that are made from the annotations and are missing, each atomically.

    These are ``labels``, ``panoptic`` and, if the vocabulary has unseen classes, ``seen``.

    Returns: the names of the folders written.
    """
    writers = {"labels": write_labels, "panoptic": write_panoptic}
    if vocabulary.held_out:
        writers["seen"] = write_seen
    missing = [name for name in writers if not (root / name).is_dir()]
    for name in missing:
        with atomic_dir(root / name) as partial:
            for split in SPLITS:
                coco = json.loads(annotation_file(root, split).read_bytes())
                writers[name](partial, split, coco, vocabulary)
    return missing


def register_shapes(root: str | Path, vocabulary: Vocabulary = SHAPES) -> None:
    """Register the datasets of a folder with Detectron2. The files need not exist yet.

    "<vocabulary>_{train,val}" are for detection, "<vocabulary>_sem_seg_{train,val}" for semantic
    segmentation. See :func:`register_panoptic` for "<vocabulary>_panoptic_{train,val}". If the vocabulary has
    unseen classes, "<vocabulary>_seen_{train,val}" and "<vocabulary>_seen_sem_seg_{train,val}" label the
    seen ones.

    Args:
        root: the folder given to :func:`generate_shapes`.
        vocabulary: the vocabulary given to :func:`generate_shapes`.

    Raises:
        AssertionError: a name is already registered.
    """
    root = Path(root)
    script = "python datasets/prepare_shapes.py"
    how_to_get = (
        f"Run `{script}`." if vocabulary is SHAPES else f"Run `{script} --vocabulary {vocabulary.name}`."
    )
    sources = {vocabulary.name: (root, vocabulary.class_names)}
    if vocabulary.held_out:
        sources[f"{vocabulary.name}_seen"] = root / "seen", vocabulary.seen_class_names
    for split, (name, (folder, class_names)) in itertools.product(SPLITS, sources.items()):
        metadata = {"thing_classes": list(class_names), "how_to_get": how_to_get}
        register_coco_instances(
            f"{name}_{split}", metadata, str(annotation_file(folder, split)), str(root / split)
        )
        register_semantic_folder(
            f"{name}_sem_seg_{split}", root / split, folder / "labels" / split, (*class_names, BACKGROUND),
            how_to_get=how_to_get, ignore_label=IGNORED,
        )  # fmt: skip
    for split in SPLITS:
        register_panoptic(
            f"{vocabulary.name}_panoptic_{split}", root, split, vocabulary, how_to_get=how_to_get
        )


def _generate_split(
    directory: Path, num_images: int, entropy: tuple[int, ...], vocabulary: Vocabulary
) -> dict:
    """Write a split's images into ``directory``. Return its COCO entries without "info"."""
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id in range(1, num_images + 1):
        rng = np.random.default_rng([*entropy, image_id])
        height, width = (int(side) for side in rng.choice(IMAGE_SIDES, size=2))
        instances, image = draw_scene(rng, height, width, vocabulary)
        file_name = f"{image_id:012d}.png"
        image.save(directory / file_name)
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for instance in instances:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_annotation(instance)})
    categories = categories_of(vocabulary.class_names)
    return {"licenses": [], "categories": categories, "images": images, "annotations": annotations}


def _annotation(instance: Instance) -> dict:
    """Return the COCO annotation of an instance without its ids."""
    points, is_crowd = np.concatenate([shape.polygon for shape in instance.shapes]), instance.is_crowd
    low, high = points.min(axis=0), points.max(axis=0)
    return {
        "category_id": instance.category + 1,
        "bbox": [*low.tolist(), *(high - low).round(2).tolist()],
        "area": float(instance.mask.sum()) if is_crowd else _polygon_area(points),
        "segmentation": _run_length_encoding(instance.mask) if is_crowd else [points.ravel().tolist()],
        "iscrowd": int(is_crowd),
    }


def _polygon_area(polygon: np.ndarray) -> float:
    """Return the area of an (n, 2) polygon in square pixels (the shoelace formula)."""
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _run_length_encoding(mask: np.ndarray) -> dict:
    """Return COCO's uncompressed encoding of a (height, width) bool mask.

    "counts" are lengths of runs down the columns, alternately outside and inside. The first may be 0.
    """
    pixels = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(pixels, prepend=False))
    return {"counts": np.diff(starts, prepend=0, append=pixels.size).tolist(), "size": list(mask.shape)}

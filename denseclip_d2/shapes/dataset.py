"""The "shapes" dataset: small generated images in COCO format whose class names carry language.

A class is a color, a texture and a shape, such as "red striped circle", so that a text encoder has
something to read: no word alone tells two classes apart. The dataset is small enough to be generated
in seconds, and holds what a detector meets in COCO: images of several sizes, images without objects,
overlaps, and crowd regions (``iscrowd=1`` with a run-length encoding).

For semantic segmentation every image has a label image. A pixel's label is the class of the topmost object
there, under the detector's class id, and the last class, "background", where there is none: a class as any
other rather than ignored, so that what a model sees where nothing is counts against it. ``shapes_panoptic``
has the panoptic annotations.
"""

import itertools
import json
import logging
from pathlib import Path

import numpy as np
from detectron2.data.datasets import register_coco_instances

from ..data.semantic import register_semantic_folder
from ..utils.atomic import atomic_dir
from .labels import IGNORED, SPLITS, add_labels, add_seen
from .panoptic import add_panoptic, register_panoptic
from .scene import IMAGE_SIDES, Instance, draw_scene
from .vocabulary import BACKGROUND, SHAPES, World

__all__ = [
    "CLASS_NAMES",
    "SEMANTIC_CLASS_NAMES",
    "generate_shapes",
    "register_shapes",
    "shapes_info",
]

logger = logging.getLogger(__name__)

#: The 18 classes of the world that is called "shapes" itself, and those of its label images.
CLASS_NAMES, SEMANTIC_CLASS_NAMES = SHAPES.class_names, SHAPES.semantic_class_names

# Part of what is stored with the dataset: raise it when the same parameters give other images.
VERSION = "1.0"


def shapes_info(*, num_train: int, num_val: int, seed: int, world: World = SHAPES) -> dict:
    """The "info" entry of the annotation files: it identifies the dataset made by these parameters."""
    return {
        "description": f"{world.name}: generated images of coloured, textured geometric shapes",
        "version": VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "seed": seed,
    }


def generate_shapes(
    root: Path, *, num_train: int = 2000, num_val: int = 200, seed: int = 0, world: World = SHAPES
) -> None:
    """Writes ``root/annotations/instances_{train,val}.json``, ``root/{train,val}/*.png``, ``root/labels`` and
    ``root/panoptic``.

    An image and its annotations depend only on the seed, the split and the number of the image, not on
    how many images there are; with the same numpy and Pillow they are the same bit for bit.
    ``root`` appears when all is written: an interrupted run leaves nothing there.

    Args:
        root: directory to make; it may exist if it is empty.
        num_train: number of training images.
        num_val: number of validation images.
        seed: non-negative seed of all random choices.
        world: the colors, textures and outlines there are.

    Raises:
        FileExistsError: ``root`` is there and is not an empty directory.
        ValueError: a number of images or the seed is negative.
    """
    if min(num_train, num_val, seed) < 0:
        raise ValueError(f"num_train={num_train}, num_val={num_val}, seed={seed}: none may be negative")
    root = Path(root).resolve()
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise FileExistsError(f"{root} exists and is not empty: delete it or choose another directory")

    info = shapes_info(num_train=num_train, num_val=num_val, seed=seed, world=world)
    with atomic_dir(root) as partial:
        (partial / "annotations").mkdir()
        for split, num_images in zip(SPLITS, (num_train, num_val), strict=True):
            (partial / split).mkdir()
            coco = _generate_split(partial / split, num_images, (seed, SPLITS.index(split)), world)
            path = partial / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps({"info": info, **coco}), encoding="utf-8")
        add_labels(partial)
        add_panoptic(partial)
        if world.held_out:
            add_seen(partial, world)
    logger.info("Wrote %d training and %d validation images to %s", num_train, num_val, root)


def register_shapes(root: str | Path, world: World = SHAPES) -> None:
    """Registers "shapes_{train,val}", for detection, and "shapes_sem_seg_{train,val}" with Detectron2.

    "shapes_panoptic_{train,val}" and "shapes_panoptic_{train,val}_separated" are as
    :func:`register_panoptic` has them. Those of another world begin with its name. Where it holds classes
    out, "<name>_seen_{train,val}" and "<name>_seen_sem_seg_{train,val}" have the others alone.

    The files need not exist yet.

    Args:
        root: the directory given to :func:`generate_shapes`.
        world: as given there.

    Raises:
        AssertionError: one of the names is already registered.
    """
    root = Path(root)
    script = "python datasets/prepare_shapes.py"
    how_to_get = f"Run `{script}`." if world is SHAPES else f"Run `{script} --world {world.name}`."
    sources = {world.name: (root, world.class_names)}
    if world.held_out:
        sources[f"{world.name}_seen"] = root / "seen", world.seen_class_names
    for split, (name, (folder, class_names)) in itertools.product(SPLITS, sources.items()):
        metadata = {"thing_classes": list(class_names), "how_to_get": how_to_get}
        annotations = folder / "annotations" / f"instances_{split}.json"
        register_coco_instances(f"{name}_{split}", metadata, str(annotations), str(root / split))
        register_semantic_folder(
            f"{name}_sem_seg_{split}",
            root / split,
            folder / "labels" / split,
            (*class_names, BACKGROUND),
            how_to_get=how_to_get,
            ignore_label=IGNORED,
        )
    for split in SPLITS:
        register_panoptic(f"{world.name}_panoptic_{split}", root, split, world, how_to_get=how_to_get)


def _generate_split(directory: Path, num_images: int, entropy: tuple[int, ...], world: World) -> dict:
    """Writes the images of one split into ``directory`` and returns its COCO entries but for "info"."""
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id in range(1, num_images + 1):
        rng = np.random.default_rng([*entropy, image_id])
        height, width = (int(side) for side in rng.choice(IMAGE_SIDES, size=2))
        instances, image = draw_scene(rng, height, width, world)
        file_name = f"{image_id:012d}.png"
        image.save(directory / file_name)
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for instance in instances:
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append(ids | _annotation(instance))
    return {
        "licenses": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(world.class_names, start=1)],
        "images": images,
        "annotations": annotations,
    }


def _annotation(instance: Instance) -> dict:
    """The COCO annotation of an instance, but for its ids."""
    points = np.concatenate([shape.polygon for shape in instance.shapes])
    low, high = points.min(axis=0), points.max(axis=0)
    segmentation: dict | list[list[float]]
    if instance.is_crowd:
        segmentation, area = _run_length_encoding(instance.mask), float(instance.mask.sum())
    else:
        segmentation, area = [points.ravel().tolist()], _polygon_area(points)
    return {
        "category_id": instance.category + 1,
        "bbox": [*low.tolist(), *(high - low).round(2).tolist()],
        "area": area,
        "segmentation": segmentation,
        "iscrowd": int(instance.is_crowd),
    }


def _polygon_area(polygon: np.ndarray) -> float:
    """Area of an (n, 2) polygon, in square pixels (the shoelace formula)."""
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _run_length_encoding(mask: np.ndarray) -> dict:
    """COCO's uncompressed encoding of a (height, width) bool mask.

    "counts" are the lengths of the runs down the columns, in turn outside and inside the mask; the
    first one is outside, hence 0 if the mask holds the first pixel.
    """
    pixels = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(pixels, prepend=False))
    return {"counts": np.diff(starts, prepend=0, append=pixels.size).tolist(), "size": list(mask.shape)}

"""Public datasets of label maps: layout, class names, and the conversion of the files for Detectron2.

ADE20K and Cityscapes are registered by Detectron2, COCO-Stuff and PASCAL Context here.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from tqdm import tqdm

from ..utils.atomic import atomic_write
from .coco_source import find_files, listed, read_lines
from .semantic import register_semantic_folder

IGNORED = 255

# COCO-Stuff's labels.txt (Caesar et al., CVPR 2018), ids 92 to 182. The words "other" and "stuff", which mark
# "wall-other" and "door-stuff" off from other classes, are left out, and hyphens are spaces.
_STUFF = """
    banner, blanket, branch, bridge, building, bush, cabinet, cage, cardboard, carpet, ceiling, ceiling
    tile, cloth, clothes, clouds, counter, cupboard, curtain, desk, dirt, door, fence, floor marble, floor,
    floor stone, floor tile, floor wood, flower, fog, food, fruit, furniture, grass, gravel, ground, hill,
    house, leaves, light, mat, metal, mirror, moss, mountain, mud, napkin, net, paper, pavement, pillow,
    plant, plastic, platform, playing field, railing, railroad, river, road, rock, roof, rug, salad, sand,
    sea, shelf, sky, skyscraper, snow, solid, stairs, stone, straw, structural, table, tent, textile, towel,
    tree, vegetable, wall brick, wall concrete, wall, wall panel, wall stone, wall tile, wall wood, water,
    water drops, window blind, window, wood
"""
_THINGS = {category["id"]: category["name"] for category in COCO_CATEGORIES if category["isthing"]}
COCO_STUFF_CLASSES = (*_THINGS.values(), *" ".join(_STUFF.split()).split(", "))

# PASCAL Context's 59_labels.txt (Mottaghi et al., CVPR 2014), in its order. Its labels.txt calls three of the
# classes by other words, which are synonyms here. Words that are written together are apart.
_CONTEXT = """
    aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table|table, dog, horse,
    motorbike, person, potted plant, sheep, sofa, train, tv monitor, bag, bed, bench, book, building,
    cabinet, ceiling, clothes|cloth, computer, cup, door, fence, floor, flower, food, grass, ground,
    keyboard, light, mountain, mouse, curtain, platform, sign, plate, road, rock, shelves, sidewalk, sky,
    snow, bedcloth|bedclothes, track, tree, truck, wall, water, window, wood
"""
PASCAL_CONTEXT_CLASSES = tuple(" ".join(_CONTEXT.split()).split(", "))


class Split(NamedTuple):
    """Files of a split, below the dataset's folder; "{}" is a file's name, with folders if it has any."""

    images: str
    labels: str
    converted: str
    num_images: int
    #: The file that lists the split's names, if a folder has those of several splits.
    list_file: str = ""


class LabelMaps(NamedTuple):
    """A dataset as it is downloaded."""

    title: str
    folder: str
    #: The class of each value in the label images, or :data:`IGNORED`.
    classes: Mapping[int, int]
    splits: Sequence[Split]


_TRAIN_IDS = dict(zip((7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33), range(19), strict=True))

DATASETS = {
    "ade20k": LabelMaps(
        "ADE20K", "ADEChallengeData2016", {0: IGNORED} | {value: value - 1 for value in range(1, 151)},
        [
            Split(
                f"images/{name}/{{}}.jpg", f"annotations/{name}/{{}}.png",
                f"annotations_detectron2/{name}/{{}}.png", count,
            )
            for name, count in (("training", 20210), ("validation", 2000))
        ],
    ),
    # The maps have an id less 1. COCO has no masks of eleven of its ids, so these have no class.
    "coco_stuff": LabelMaps(
        "COCO-Stuff", "coco",
        {IGNORED: IGNORED} | {id_ - 1: class_ for class_, id_ in enumerate([*_THINGS, *range(92, 183)])},
        [
            Split(
                f"{name}/{{}}.jpg", f"stuffthingmaps/{name}/{{}}.png",
                f"stuffthingmaps_detectron2/{name}/{{}}.png", count,
            )
            for name, count in (("train2017", 118287), ("val2017", 5000))
        ],
    ),
    "pascal_context": LabelMaps(
        "PASCAL Context", "VOCdevkit/VOC2010", {0: IGNORED} | {value: value - 1 for value in range(1, 60)},
        [
            Split(
                "JPEGImages/{}.jpg", "59_context_labels/{}.png", f"annotations_detectron2/{name}/{{}}.png",
                count, f"ImageSets/Main/{name}.txt",
            )
            for name, count in (("train", 4998), ("val", 5105))
        ],
    ),
    # The other ids up to 33 are not evaluated: cityscapesscripts' labels.py.
    "cityscapes": LabelMaps(
        "Cityscapes", "cityscapes", dict.fromkeys(range(34), IGNORED) | _TRAIN_IDS,
        [
            Split(
                f"leftImg8bit/{name}/{{}}_leftImg8bit.png", f"gtFine/{name}/{{}}_gtFine_labelIds.png",
                f"gtFine/{name}/{{}}_gtFine_labelTrainIds.png", count,
            )
            for name, count in (("train", 2975), ("val", 500))
        ],
    ),
}  # fmt: skip


def register_label_maps(root: str | Path) -> None:
    """Register "coco_stuff_sem_seg_{train,val}" and "pascal_context_59_sem_seg_{train,val}" with Detectron2.

    Args:
        root: the folder of datasets. The files need not exist yet.

    Raises:
        AssertionError: a name is already registered.
    """
    names = {
        "coco_stuff": ("coco_stuff_sem_seg", COCO_STUFF_CLASSES),
        "pascal_context": ("pascal_context_59_sem_seg", PASCAL_CONTEXT_CLASSES),
    }
    for dataset, (name, classes) in names.items():
        folder = Path(root) / DATASETS[dataset].folder
        for kind, split in zip(("train", "val"), DATASETS[dataset].splits, strict=True):
            register_semantic_folder(
                f"{name}_{kind}", (folder / split.images).parent, (folder / split.converted).parent, classes,
                unlabeled=bool(split.list_file), how_to_get=how_to_get(dataset),
            )  # fmt: skip


def how_to_get(dataset: str) -> str:
    """Return the command that converts one of :data:`DATASETS`, as a sentence."""
    script = "prepare_ade20k.py" if dataset == "ade20k" else f"prepare_label_maps.py {dataset}"
    return f"Run `python datasets/{script}`."


def convert_label_maps(dataset: LabelMaps, root: Path, allow_partial: bool = False) -> str:
    """Write the label images that Detectron2 reads and that are missing, each atomically.

    Args:
        root: the dataset's folder.
        allow_partial: accept fewer images than the whole dataset has.
    Returns: what was written, as a sentence.
    Raises:
        ValueError: an image or a label image is missing, broken or another dataset's.
    """
    pairs = [
        (root / split.labels.format(name), root / split.converted.format(name))
        for split in dataset.splits
        for name in _find(dataset, split, root, allow_partial)
    ]
    todo = [(source, target) for source, target in pairs if not target.exists()]
    for folder in {target.parent for _, target in todo}:
        folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        written = pool.map(lambda pair: _convert(pair[0], pair[1], dataset), todo)
        list(tqdm(written, total=len(todo), unit="file"))
    return f"{root} has the labels of {len(pairs)} images, {len(todo)} of them new"


def _find(dataset: LabelMaps, split: Split, root: Path, allow_partial: bool) -> list[str]:
    """Return the names of a split's images."""
    images, labels = _names(root, split.images), _names(root, split.labels)
    where = split.labels.format("*")
    if split.list_file:
        if not (root / split.list_file).is_file():
            raise ValueError(f"{root} has no {split.list_file}. Unpack the whole dataset.")
        of_split = set(read_lines(root / split.list_file))
        images, labels, where = images & of_split, labels & of_split, f"{where} of {split.list_file}"
        images = images & labels if allow_partial else images
    if unpaired := sorted(images ^ labels):
        raise ValueError(
            f"{root}: {len(unpaired)} of the {len(images)} images and {len(labels)} label images {where} "
            f"have no counterpart, such as {unpaired[0]}. Download or unpack the dataset again."
        )
    if not labels or (len(labels) != split.num_images and not allow_partial):
        raise ValueError(
            f"{root} has {len(labels)} of {dataset.title}'s {split.num_images} images "
            f"{split.images.format('*')} and label images {where}. Download or unpack the dataset again, or "
            "give --allow-partial."
        )
    return sorted(labels)


def _names(root: Path, files: str) -> set[str]:
    folder, ending = files.split("{}")
    found = (path.relative_to(root / folder).as_posix() for path in find_files(root / folder))
    return {name.removesuffix(ending) for name in found if name.endswith(ending)}


def _convert(source: Path, target: Path, dataset: LabelMaps) -> None:
    try:
        with Image.open(source) as image:
            mode, labels = image.mode, np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{source} is broken ({error}). Download or unpack the dataset again.") from error
    table = np.full(256, -1, np.int16)
    table[[*dataset.classes]] = [*dataset.classes.values()]
    wrong = f"Pillow's mode {mode!r}" if mode not in ("L", "P") else ""
    if not wrong and (converted := table[labels]).min(initial=0) < 0:
        wrong = listed(np.unique(labels[converted < 0]).tolist())
    if wrong:
        raise ValueError(
            f"{source} has other labels than {dataset.title}: {wrong}. It is of another dataset, or it is "
            "converted already."
        )
    with atomic_write(target, "wb") as file:
        Image.fromarray(converted.astype(np.uint8)).save(file, "PNG")

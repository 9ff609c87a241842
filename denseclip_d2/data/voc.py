"""Datasets in Pascal VOC's format: an XML file of objects for each image."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..utils.text import read_text
from .coco_source import (
    CocoSource,
    LabeledImage,
    LabeledObject,
    as_coco,
    find_files,
    find_images,
    image_sizes,
    is_image,
    listed,
)
from .voc_annotations import VocAnnotation, counts_from_zero, read_annotation

logger = logging.getLogger(__name__)

FOLDERS = (("Annotations", "JPEGImages"), ("Annotations", "images"), ("annotations", "images"))
NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LISTS = {**NAMES, "train": ("train", "trainval", "default")}  # CVAT's without subsets is "default"
LABEL_MAP, BACKGROUND = "labelmap.txt", "background"


@dataclass(frozen=True)
class _Pair:
    """An image, its path in its folder without ending, and its XML file if there is one."""

    id: str
    image: Path
    xml: Path | None


def read_voc(folder: str | Path) -> dict[str, CocoSource]:
    """Read a dataset in Pascal VOC's format, as VOC, CVAT, Datumaro, labelImg and Roboflow arrange it.

    - ``Annotations/*.xml`` and ``JPEGImages/`` (or ``images/``). ``ImageSets/Main`` lists the images of each
      split; trainval.txt is the list for training where there is no train.txt. Without lists, all is for
      training.
    - XML files beside the images, in ``train/``, ``valid/`` and ``test/``; or in one folder, for training.

    A file ``a.xml`` belongs to the image called ``a``, or else to the image in its ``<filename>``. An image
    without XML file stays as an image without objects.

    The classes are those of labelmap.txt, in its order and without "background", or else the names of the
    objects, sorted. Objects marked as difficult are ordinary objects, in training, as in Detectron2, and in
    evaluation, where VOC's own protocol leaves them out. Their number is logged.

    VOC numbers pixels from 1, and xmax and ymax belong to the box. As in Detectron2, a box begins at
    xmin - 1, ymin - 1 and ends at xmax, ymax. Some tools write coordinates from 0: where a number is below 1,
    or most boxes have fractions, all boxes of the folder are taken as they stand.

    Masks (``SegmentationObject``), polygons and parts are not read.

    Returns: "train", and "val" and "test" where the dataset has them.

    Raises:
        FileNotFoundError: the image of an XML file, or what a list names, is not there.
        ValueError: a file is not as described. The error names it.
    """
    root = Path(os.path.normpath(Path(folder).expanduser().absolute()))
    splits = _pairs(root)
    if not splits["train"]:
        raise ValueError(f"{root} holds no images to train on.")
    pairs = {pair.image: pair for split in splits.values() for pair in split}
    annotations = {image: read_annotation(pair.xml) for image, pair in pairs.items() if pair.xml}
    class_names = _class_names(root, annotations.values())
    first = 0 if counts_from_zero(annotations.values()) else 1
    difficult = sum(each.difficult for annotation in annotations.values() for each in annotation.objects)
    logger.info("%s: boxes count from %d; %d objects are marked as difficult.", root, first, difficult)
    sizes = _sizes(pairs, annotations)
    sources = {}
    for split, members in splits.items():
        images = [pair.image for pair in members]
        labeled = [
            LabeledImage(image, sizes[image], _objects(annotations.get(image), class_names, first))
            for image in images
        ]
        sources[split] = as_coco(labeled, class_names, root, f"{root} (Pascal VOC, {split})")
    return sources


def is_voc(folder: Path) -> bool:
    """Return whether a folder, or a folder in it, holds XML files."""
    return bool(find_files(folder, ".xml"))


def _pairs(root: Path) -> dict[str, list[_Pair]]:
    """Return the images of each split."""
    places = ((root / of_xml, root / of_images) for of_xml, of_images in FOLDERS)
    if place := next((place for place in places if all(map(Path.is_dir, place))), None):
        return _listed(_paired(*place), root / "ImageSets" / "Main")
    folders = _chosen({path.name.lower(): path for path in root.iterdir() if path.is_dir()}, NAMES)
    if "train" not in folders:
        if inner := next(root.rglob(FOLDERS[0][1]), None):
            raise ValueError(f"{root} is above a Pascal VOC dataset. Name {inner.parent}.")
        return {"train": _paired(root, root)}
    return {split: _paired(folder, folder) for split, folder in folders.items()}


def _listed(everything: Sequence[_Pair], lists: Path) -> dict[str, list[_Pair]]:
    """Return the images of each split by the lists, without which everything is for training."""
    files = {file.stem.lower(): file for file in lists.glob("*.txt")}
    splits = {split: _of_list(file, everything) for split, file in _chosen(files, LISTS).items()}
    train = splits.pop("train", everything)
    if "train" not in files:
        evaluated = {pair for split in splits.values() for pair in split}
        train = [pair for pair in train if pair not in evaluated]
    return {"train": [*train], **splits}


def _chosen(places: Mapping[str, Path], names_of: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Return the place of each split that has one, by the first of its names. Case does not count."""
    found = {split: [places[name] for name in names if name in places] for split, names in names_of.items()}
    return {split: of_split[0] for split, of_split in found.items() if of_split}


def _paired(of_xml: Path, of_images: Path) -> list[_Pair]:
    """Return all images with their XML files.

    Raises:
        FileNotFoundError: an XML file has no image.
        ValueError: an XML file has several images, or an image several XML files.
    """
    ids = {image: str(image.relative_to(of_images).with_suffix("")) for image in find_images(of_images)}
    by_id, by_stem, by_name = (defaultdict[str, list[Path]](list) for _ in range(3))
    for image, id_ in ids.items():
        by_id[id_].append(image)
        by_stem[image.stem].append(image)
        by_name[image.name].append(image)
    xml_of: dict[Path, Path] = {}
    missing = []
    for xml in find_files(of_xml, ".xml"):
        id_ = str(xml.relative_to(of_xml).with_suffix(""))
        found = by_id.get(id_) or by_stem.get(xml.stem) or by_name.get(read_annotation(xml).image_name, [])
        found = _nearest(xml, found)
        if len(found) > 1:
            raise ValueError(f"{xml} fits several images: {listed(found)}. Rename or remove all but one.")
        if other := next(filter(None, map(xml_of.get, found)), None):
            raise ValueError(f"{found[0]} has two XML files: {other} and {xml}. Remove one.")
        xml_of.update((image, xml) for image in found)
        missing += [] if found else [f"{xml} ({read_annotation(xml).image_name or xml.stem})"]
    if missing:
        raise FileNotFoundError(f"{len(missing)} XML files have no image in {of_images}: {listed(missing)}.")
    return [_Pair(id_, image, xml_of.get(image)) for image, id_ in ids.items()]


def _nearest(xml: Path, images: Sequence[Path]) -> list[Path]:
    """Return the images that share the most folders with an XML file."""
    shared = [len(os.path.commonpath((xml, image))) for image in images]
    return [image for image, length in zip(images, shared, strict=True) if length == max(shared)]


def _of_list(file: Path, everything: Sequence[_Pair]) -> list[_Pair]:
    """Return the images that a list in ImageSets names, an id a line; Datumaro quotes ids with spaces.

    Raises:
        FileNotFoundError: an image is not there.
    """
    pairs = defaultdict(list)
    for pair in everything:
        pairs[pair.id].append(pair)
    chosen: list[_Pair] = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if name := line.strip().strip('"'):
            id_ = str(PurePosixPath(name).with_suffix("")) if is_image(Path(name)) else name
            if id_ not in pairs:
                raise FileNotFoundError(f"{file}:{number}: there is no image {name}.")
            chosen += pairs[id_]
    return list(dict.fromkeys(chosen))


def _class_names(root: Path, annotations: Iterable[VocAnnotation]) -> tuple[str, ...]:
    """
    Raises:
        ValueError: an object has no name of labelmap.txt, or there are no names at all.
    """
    first_with = {each.name: annotation.path for annotation in annotations for each in annotation.objects}
    file = root / LABEL_MAP
    if not file.is_file():
        if not first_with:
            raise ValueError(f"{root} has no object in any XML file: there is nothing to learn.")
        return tuple(sorted(first_with))
    lines = [line.strip() for line in read_text(file).splitlines()]
    names = [line.split(":")[0].strip() for line in lines if line and not line.startswith("#")]
    names = [name for name in dict.fromkeys(names) if name != BACKGROUND]
    if unknown := sorted(first_with.keys() - {*names}):
        raise ValueError(f"{first_with[unknown[0]]} has an object {unknown[0]!r}, which is not in {file}.")
    return tuple(names)


def _sizes(images: Iterable[Path], annotations: Mapping[Path, VocAnnotation]) -> dict[Path, tuple[int, int]]:
    """Return width and height of each image: as its XML file has them, or else as the image is read."""
    sizes = {image: annotation.size for image, annotation in annotations.items() if annotation.size}
    unknown = [image for image in images if image not in sizes]
    return {**sizes, **dict(zip(unknown, image_sizes(unknown), strict=True))}


def _objects(annotation: VocAnnotation | None, class_names: Sequence[str], first: int) -> list[LabeledObject]:
    """
    Args:
        first: the number of the first pixel, 0 or 1.
    """
    if annotation is None:
        return []
    boxes = [(each.name, *each.corners) for each in annotation.objects]
    return [
        LabeledObject(class_names.index(name), (x0 - first, y0 - first, x1, y1))
        for name, x0, y0, x1, y1 in boxes
    ]

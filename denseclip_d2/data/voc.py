"""Read datasets in Pascal VOC's format: an XML file of objects for each image."""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from xml.etree import ElementTree

from ..utils.text import read_text
from .coco_source import (
    SPLITS,
    CocoSource,
    LabeledImage,
    LabeledObject,
    as_coco,
    find_files,
    find_images,
    image_sizes,
    is_image,
    listed,
    read_lines,
)

logger = logging.getLogger(__name__)

FOLDERS = (("Annotations", "JPEGImages"), ("Annotations", "images"), ("annotations", "images"))
LISTS = {**SPLITS, "train": ("train", "trainval", "default")}  # CVAT's without subsets is "default"
LABEL_MAP, BACKGROUND = "labelmap.txt", "background"

CORNERS = ("xmin", "ymin", "xmax", "ymax")

Pairs = dict[Path, Path | None]
"""The XML file of each image, if there is one."""


class VocObject(NamedTuple):
    """One ``<object>``. The corners are x0, y0, x1, y1 as the file has them, the smaller first."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


class VocAnnotation(NamedTuple):
    """An XML file.

    Attributes:
        image_name: the last part of ``<filename>``; empty if there is none.
        size: width and height in pixels; None if the file does not have them.
    """

    path: Path
    image_name: str
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]


def read_voc(folder: str | Path) -> dict[str, CocoSource]:
    """Read a dataset in Pascal VOC's format, as VOC, CVAT, Datumaro, labelImg and Roboflow arrange it.

    - ``Annotations/*.xml`` and ``JPEGImages/`` (or ``images/``). ``ImageSets/Main`` lists the images of each
      split. trainval.txt lists the training images if there is no train.txt. Without lists, all images are
      for training.
    - XML files beside the images, in ``train/``, ``valid/`` and ``test/``; or in one folder, for training.

    A file ``a.xml`` belongs to the image called ``a``, or else to the image in its ``<filename>``. An image
    without an XML file stays as an image without objects.

    The classes are those of labelmap.txt, in its order and without "background", or else the names of the
    objects, sorted. Objects marked as difficult are ordinary objects, as in Detectron2's training. VOC's own
    protocol leaves them out of evaluation. Their number is logged.

    VOC numbers pixels from 1, and xmax and ymax belong to the box. As in Detectron2, a box begins at
    xmin - 1, ymin - 1 and ends at xmax, ymax. Some tools write coordinates from 0: if a number is below 1,
    or most boxes have fractions, no box of the folder is shifted.

    Masks (``SegmentationObject``), polygons and parts are not read.

    Returns: "train", and "val" and "test" if the dataset has them.

    Raises:
        FileNotFoundError: the image of an XML file, or what a list names, is missing.
        ValueError: a file is malformed. The error names it.
    """
    root = Path(os.path.normpath(Path(folder).expanduser().absolute()))
    splits = _pairs(root)
    if not splits["train"]:
        raise ValueError(f"{root} holds no images to train on.")
    pairs = {image: xml for split in splits.values() for image, xml in split.items()}
    annotations = {image: read_annotation(xml) for image, xml in pairs.items() if xml}
    class_names = _class_names(root, annotations.values())
    objects = _objects(root, annotations, class_names)
    sizes = {image: annotation.size for image, annotation in annotations.items() if annotation.size}
    unknown = [image for image in pairs if image not in sizes]
    sizes |= zip(unknown, image_sizes(unknown), strict=True)
    sources = {}
    for split, images in splits.items():
        labeled = [LabeledImage(image, sizes[image], objects.get(image, [])) for image in images]
        sources[split] = as_coco(labeled, class_names, root, f"{root} (Pascal VOC, {split})")
    return sources


def is_voc(folder: Path) -> bool:
    """Return whether a folder, or a folder in it, holds XML files."""
    return bool(find_files(folder, ".xml"))


def _pairs(root: Path) -> dict[str, Pairs]:
    """Return the images of each split."""
    places = ((root / of_xml, root / of_images) for of_xml, of_images in FOLDERS)
    if place := next((place for place in places if all(map(Path.is_dir, place))), None):
        return _listed(_paired(*place), place[1], root / "ImageSets" / "Main")
    folders = _chosen({path.name.lower(): path for path in root.iterdir() if path.is_dir()}, SPLITS)
    if "train" not in folders:
        if inner := next(root.rglob(FOLDERS[0][1]), None):
            raise ValueError(f"{root} is above a Pascal VOC dataset. Give {inner.parent}.")
        return {"train": _paired(root, root)}
    return {split: _paired(folder, folder) for split, folder in folders.items()}


def _listed(everything: Pairs, of_images: Path, lists: Path) -> dict[str, Pairs]:
    """Return the images of each split by its list. Without lists, everything is for training."""
    files = {file.stem.lower(): file for file in lists.glob("*.txt")}
    splits = {
        split: {image: everything[image] for image in _of_list(file, everything, of_images)}
        for split, file in _chosen(files, LISTS).items()
    }
    train = splits.pop("train", everything)
    if "train" not in files:
        train = {i: xml for i, xml in train.items() if not any(i in split for split in splits.values())}
    return {"train": train, **splits}


def _chosen(places: Mapping[str, Path], names_of: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Return the place of each split that has one, by the first of its names. The names are lower case."""
    found = {split: [places[name] for name in names if name in places] for split, names in names_of.items()}
    return {split: of_split[0] for split, of_split in found.items() if of_split}


def _paired(of_xml: Path, of_images: Path) -> Pairs:
    """Return all images with their XML files.

    Raises:
        FileNotFoundError: an XML file has no image.
        ValueError: an XML file has several images, or an image several XML files.
    """
    pairs: Pairs = dict.fromkeys(find_images(of_images))
    by_id, by_stem, by_name = (defaultdict[str, list[Path]](list) for _ in range(3))
    for image in pairs:
        by_id[_id(image, of_images)].append(image)
        by_stem[image.stem].append(image)
        by_name[image.name].append(image)
    missing = []
    for xml in find_files(of_xml, ".xml"):
        found = by_id.get(_id(xml, of_xml)) or by_stem.get(xml.stem)
        found = found or by_name.get(read_annotation(xml).image_name, [])
        # Of several, those that share the most folders with the XML file.
        shared = [len(os.path.commonpath((xml, image))) for image in found]
        found = [image for image, length in zip(found, shared, strict=True) if length == max(shared)]
        if len(found) > 1:
            raise ValueError(f"{xml} fits several images: {listed(found)}. Rename or remove all but one.")
        if not found:
            missing.append(f"{xml} ({read_annotation(xml).image_name or xml.stem})")
        elif other := pairs[found[0]]:
            raise ValueError(f"{found[0]} has two XML files: {other} and {xml}. Remove one.")
        else:
            pairs[found[0]] = xml
    if missing:
        raise FileNotFoundError(f"{len(missing)} XML files have no image in {of_images}: {listed(missing)}.")
    return pairs


def _id(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def _of_list(file: Path, images: Collection[Path], of_images: Path) -> Iterable[Path]:
    """Yield the images in a list of ImageSets, with an id a line. Datumaro quotes ids with spaces."""
    by_id = defaultdict(list)
    for image in images:
        by_id[_id(image, of_images)].append(image)
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if name := line.strip().strip('"'):
            id_ = str(PurePosixPath(name).with_suffix("")) if is_image(Path(name)) else name
            if id_ not in by_id:
                raise FileNotFoundError(f"{file}:{number}: there is no image {name}.")
            yield from by_id[id_]


def _class_names(root: Path, annotations: Iterable[VocAnnotation]) -> tuple[str, ...]:
    """
    Raises:
        ValueError: labelmap.txt does not have the name of an object, or there is no object.
    """
    first_with = {each.name: annotation.path for annotation in annotations for each in annotation.objects}
    file = root / LABEL_MAP
    if not file.is_file():
        if not first_with:
            raise ValueError(f"{root} has no object in any XML file: there is nothing to learn.")
        return tuple(sorted(first_with))
    names = [line.split(":")[0].strip() for line in read_lines(file) if line and not line.startswith("#")]
    names = [name for name in dict.fromkeys(names) if name != BACKGROUND]
    if unknown := sorted(first_with.keys() - {*names}):
        raise ValueError(f"{first_with[unknown[0]]} has an object {unknown[0]!r}, which is not in {file}.")
    return tuple(names)


def read_annotation(path: Path) -> VocAnnotation:
    """Read an XML file.

    Raises:
        ValueError: the file is not XML, or incomplete. The error names the file and the object.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f"{path} is not XML: {error}.") from error
    if root.tag != "annotation":
        raise ValueError(f"{path} is not in Pascal VOC's format: its root is <{root.tag}>, not <annotation>.")
    objects = []
    for number, element in enumerate(root.findall("object"), 1):
        try:
            objects.append(_read_object(element))
        except ValueError as error:
            raise ValueError(f"{path}: object {number} {error}.") from None
    image_name = PureWindowsPath(_text(root, "filename")).name  # which also splits at "/"
    return VocAnnotation(path, image_name, _size(root), tuple(objects))


def _objects(
    root: Path, annotations: Mapping[Path, VocAnnotation], class_names: Sequence[str]
) -> dict[Path, list[LabeledObject]]:
    """Return the objects of each image, with boxes in coordinates."""
    every = [each for annotation in annotations.values() for each in annotation.objects]
    # VOC's numbers of pixels are whole numbers from 1, except for a few in VOC's own files.
    fractions = sum(not all(x.is_integer() for x in each.corners) for each in every)
    first = 0 if any(min(each.corners) < 1 for each in every) or 2 * fractions > len(every) else 1
    difficult = sum(each.difficult for each in every)
    logger.info("%s: boxes count from %d; %d objects are marked as difficult.", root, first, difficult)
    return {
        image: [
            LabeledObject(class_names.index(name), (x0 - first, y0 - first, x1, y1))
            for name, (x0, y0, x1, y1), _ in annotation.objects
        ]
        for image, annotation in annotations.items()
    }


def _read_object(element: ElementTree.Element) -> VocObject:
    """Read an object, or raise a ValueError with the end of a sentence about it."""
    name, box = _text(element, "name"), element.find("bndbox")
    if not name:
        raise ValueError("has no <name>")
    if box is None:
        raise ValueError(f"({name}) has no <bndbox>")
    texts = [_text(box, key) for key in CORNERS]
    try:
        (x0, x1), (y0, y1) = sorted(map(float, texts[::2])), sorted(map(float, texts[1::2]))
        if not math.isfinite(x0 + x1 + y0 + y1):
            raise ValueError
    except ValueError:
        found = ", ".join(f"<{key}> {text!r}" for key, text in zip(CORNERS, texts, strict=True))
        raise ValueError(f"({name}) has a box that is not four finite numbers: {found}") from None
    return VocObject(name, (x0, y0, x1, y1), _text(element, "difficult").lower() in ("1", "true"))


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(_text(root, f"size/{side}"))) for side in ("width", "height"))
    except (OverflowError, ValueError):
        return None
    return (width, height) if min(width, height) > 0 else None


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()

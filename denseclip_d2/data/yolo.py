"""Read datasets in YOLO's format: a data.yaml, folders of images, and a text file for each image."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import yaml

from ..utils.text import read_text
from .coco_source import (
    SPLITS,
    CocoSource,
    LabeledImage,
    LabeledObject,
    as_coco,
    find_images,
    image_sizes,
    is_image,
    listed,
    read_lines,
)

logger = logging.getLogger(__name__)

SUFFIXES = (".yaml", ".yml", ".data")
CLASSES = "classes.txt"
TOLERANCE = 0.01  # A coordinate this far outside 0..1 is a rounding error. One farther outside is in pixels.


def read_yolo(path: str | Path) -> dict[str, CocoSource]:
    """Read a dataset in YOLO's format, as Ultralytics, Roboflow, CVAT and Label Studio write it.

    The labels of ``images/train/a.jpg`` are in ``labels/train/a.txt``, or else in ``a.txt`` beside the image.
    An image without this file, or with an empty one, stays as an image without objects. Each line is an
    object: its class, and fractions of the width and height of the image as the image is read:

    - 4 numbers are a box: center x, center y, width, height.
    - 6, 8, ... numbers are a polygon: x, y, x, y, .... A turned box (OBB) has 8, and its outline becomes its
      mask. The box of a polygon is its hull.
    - With ``kpt_shape`` in the data.yaml, keypoints follow the box. They are left out.

    Objects are clipped to the image. Repeated lines of a file count once.

    Args:
        path: a data.yaml, Darknet's obj.data, or the folder that holds one of these. A folder with
            classes.txt (a name a line), images/ and labels/, as Label Studio writes it, is all for training.
            So is a folder whose data.yaml names no split, as supervision writes it.

    Returns: "train", and "val" and "test" if the dataset has them.

    Raises:
        FileNotFoundError: the file or folder, or what it names, is missing.
        ValueError: a file, a line or an image is malformed. The error names it.
    """
    path = Path(os.path.normpath(Path(path).expanduser().absolute()))
    file = yolo_file(path) if path.is_dir() else path
    if file is None:
        raise FileNotFoundError(f"{path} holds no data.yaml.")
    content = _read_content(file)
    entries = _entries(content, file)
    class_names, keypoints = _class_names(content, file), _keypoint_numbers(content, file)
    root = Path(str(content.get("path") or ".")).expanduser()
    places = (file.parent / root, root.absolute(), file.parent, Path.cwd())  # the likeliest first
    folders = [*dict.fromkeys(Path(os.path.normpath(place)) for place in places)]
    sources = {}
    for split, of_split in entries.items():
        if images := _images(of_split, folders, f"{file}: {split}", split):
            labeled = _labeled(images, len(class_names), keypoints, f"{file}: {split}", split)
            above = next((folder for folder in folders if images[0].is_relative_to(folder)), file.parent)
            sources[split] = as_coco(labeled, class_names, above, f"{file} (YOLO, {split})")
    return sources


def yolo_file(folder: Path) -> Path | None:
    """Return the file that makes a folder a YOLO dataset, or None.

    Raises:
        ValueError: several files may be this file.
    """
    usual = (folder / name for name in ("data.yaml", "data.yml", "obj.data"))
    if found := next(filter(Path.is_file, usual), None):
        return found
    classes = folder / CLASSES
    labels = [*folder.glob("*.txt"), *(folder / "labels").rglob("*.txt")]
    if classes.is_file() and any(file.name != CLASSES for file in labels):
        return classes
    files = [file for file in sorted(folder.glob("[!.]*")) if file.suffix.lower() in SUFFIXES[:2]]
    files = [file for file in files if re.search(r"^names\s*:", read_text(file), re.MULTILINE)]
    if len(files) > 1:
        raise ValueError(f"{folder} holds several YAML files: {listed(files)}. Give the dataset's own.")
    return files[0] if files else None


def _entries(content: Mapping, file: Path) -> dict[str, list[str]]:
    """Return the folders of images, and the files that list images, of each split."""
    entries = {}
    for split, keys in SPLITS.items():
        if value := next((content[key] for key in keys if content.get(key)), None):
            entries[split] = [*map(str, value if isinstance(value, list) else [value])]
    if not entries and any(map(is_image, (file.parent / "images").glob("*"))):  # as supervision writes it
        entries = {"train": ["images"]}
    if "train" not in entries:
        raise ValueError(f"{file} names no images to train on. Add a line such as train: images/train")
    return entries


def _read_content(file: Path) -> Mapping:
    text = read_text(file)
    if file.name == CLASSES:
        return {"names": read_lines(file), "train": "images" if (file.parent / "images").is_dir() else "."}
    if file.suffix.lower() == ".data":  # Darknet's: a "key = value" each line, such as a file of names
        pairs = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
        pairs = {key.lower(): value for key, value in pairs.items()}
        names = _find(pairs.get("names") or "obj.names", (file.parent, Path.cwd()))
        return {**pairs, "names": read_lines(names) if names else None}
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} is not a data.yaml: give it the keys names and train.")
    return {str(key).lower(): value for key, value in content.items()}


def _class_names(content: Mapping, file: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, Mapping):
        numbered = {str(key): name for key, name in names.items()}
        numbers = [str(i) for i in range(len(names))]
        if {*numbered} != {*numbers}:
            raise ValueError(f"{file}: names has the keys {listed([*names])}. Number them 0, 1, 2, ...")
        names = [numbered[number] for number in numbers]
    if not isinstance(names, list) or not names:
        raise ValueError(f'{file} needs names, the names of the classes, such as ["cat", "dog"].')
    for i, name in enumerate(names):
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise ValueError(f"{file}: YAML reads the name of class {i} as {name!r}. Put the name in quotes.")
    if str(content.get("nc", len(names))) not in ("None", str(len(names))):
        raise ValueError(f"{file}: nc is {content['nc']}, and there are {len(names)} names. Correct one.")
    return tuple(str(name) for name in names)


def _keypoint_numbers(content: Mapping, file: Path) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(x, int) and x > 0 for x in shape)):
        raise ValueError(f"{file}: kpt_shape is {shape!r}. Write two numbers, such as [17, 3].")
    return shape[0] * shape[1]


def _images(entries: Sequence[str], folders: Sequence[Path], where: str, split: str) -> list[Path]:
    """Return the images of a split, each once."""
    images: list[Path] = []
    for entry in entries:
        place = _find(entry, folders, split)
        found = _images_of(place, folders) if place else []
        if not found and split == "test":  # Roboflow always names a test split, and training does not need it
            logger.info("%s: no images in %s: left out.", where, entry)
        elif not found:
            looked = f"{place} holds no images" if place else f"{entry} is not in {listed(folders)}"
            raise FileNotFoundError(f"{where}: {looked}.")
        images += found
    return list(dict.fromkeys(images))


def _images_of(place: Path, folders: Sequence[Path]) -> list[Path]:
    if place.is_dir():
        return find_images(place)
    if place.suffix.lower() != ".txt":
        raise ValueError(f"{place} is neither a folder of images nor a .txt file that lists them.")
    images = []
    for number, line in enumerate(read_text(place).splitlines(), 1):
        if line.strip():
            image = _find(line.strip(), (place.parent, *folders))
            if image is None:
                raise FileNotFoundError(f"{place}:{number}: there is no image {line.strip()}.")
            images.append(image)
    return images


def _find(entry: str, folders: Sequence[Path], word: str = "") -> Path | None:
    """Return the file or folder with the longest end of a path, or None.

    Roboflow writes "../train/images" for "train/images", and paths of another machine begin elsewhere. The
    name of a folder is only dropped if the rest still has the word, because "images" may hold all splits.
    """
    parts = PurePosixPath(entry.replace("\\", "/")).parts
    for start in range(max(len(parts), 1)):
        rest = str(PurePosixPath(*parts[start:]))
        if {*parts[:start]} - {".."} and word not in rest.lower():
            break
        for folder in folders:
            if (folder / rest).exists():
                # Links stay: the labels lie beside the link.
                return Path(os.path.normpath(folder / rest))
    return None


def _labeled(
    images: Sequence[Path], num_classes: int, keypoint_numbers: int, where: str, split: str
) -> list[LabeledImage]:
    files = [label_file(image) for image in images]
    if split != "test" and not any(file.is_file() for file in files):
        raise FileNotFoundError(
            f"{where}: none of the {len(images)} images has a label file. That of {images[0]} would be "
            f"{files[0]}."
        )
    warn_of_labels_without_image(images, files)
    labeled, repeated = [], 0
    for image, file, size in zip(images, files, image_sizes(images), strict=True):
        objects = read_labels(file, size, num_classes, keypoint_numbers)
        labeled.append(LabeledImage(image, size, list(dict.fromkeys(objects))))
        repeated += len(objects) - len(labeled[-1].objects)
    if repeated:  # as Ultralytics does
        logger.warning("%s: %d lines repeat a line of their file, and count once.", where, repeated)
    return labeled


def label_file(image: Path) -> Path:
    """Return where the labels are: in "labels" for the last "images" of the path, or beside the image."""
    beside, folders = image.with_suffix(".txt"), image.parent.parts
    if "images" not in folders:
        return beside
    last = len(folders) - 1 - folders[::-1].index("images")
    file = Path(*folders[:last], "labels", *folders[last + 1 :], beside.name)
    return beside if beside.is_file() and not file.is_file() else file


def warn_of_labels_without_image(images: Sequence[Path], files: Sequence[Path]) -> None:
    """Log files in the folders of label files that have no image, such as those of an unreadable format."""
    pairs = {(image.parent, file.parent) for image, file in zip(images, files, strict=True)}
    left = []
    for of_images, of_labels in pairs:
        if of_images != of_labels:  # beside images, a text file may be anything
            stems = {path.stem for path in of_images.iterdir() if is_image(path)} | {Path(CLASSES).stem}
            left += [file for file in of_labels.glob("*.txt") if file.stem not in stems]
    if left:
        logger.warning("%d label files have no image: left out. %s", len(left), listed(sorted(left), 3))


def read_labels(
    file: Path, size: tuple[int, int], num_classes: int, keypoint_numbers: int
) -> list[LabeledObject]:
    """Read the objects of an image; none if there is no file.

    Args:
        size: width and height of the image, in pixels.
        keypoint_numbers: how many numbers follow the box in a line of a pose dataset, else 0.

    Raises:
        ValueError: a line is malformed, see :func:`read_yolo`. The error names file and line.
    """
    objects: list[LabeledObject] = []
    for number, line in enumerate(read_text(file).splitlines() if file.is_file() else (), 1):
        if line.strip():
            try:
                objects.append(_read_line(line, size, num_classes, keypoint_numbers))
            except ValueError as error:
                raise ValueError(f"{file}:{number}: {error}.") from None
    return objects


def _read_line(line: str, size: tuple[int, int], num_classes: int, keypoint_numbers: int) -> LabeledObject:
    try:
        class_, *numbers = map(float, line.split())
    except ValueError:
        raise ValueError(f"{line.strip()!r} is not a row of numbers with spaces between them") from None
    if keypoint_numbers and len(numbers) == 4 + keypoint_numbers:
        numbers = numbers[:4]
    is_box = len(numbers) == 4
    if not is_box and (keypoint_numbers or len(numbers) < 6 or len(numbers) % 2):
        other = f"a box with keypoints {4 + keypoint_numbers}" if keypoint_numbers else "a polygon 6, 8, ..."
        raise ValueError(f"{len(numbers)} numbers follow the class. A box has 4, {other}")
    if not class_.is_integer() or not 0 <= class_ < num_classes:
        raise ValueError(f"class {class_:g} is not one of the {num_classes} names, 0 to {num_classes - 1}")
    if wrong := [x for x in numbers if not -TOLERANCE <= x <= 1 + TOLERANCE]:
        pixels = ", and looks like pixels" if max(wrong) > 1 else ""
        raise ValueError(f"{wrong[0]:g} is not a fraction of the image's size, 0 to 1{pixels}")
    if is_box:
        x, y, width, height = numbers
        if min(width, height) < 0:
            raise ValueError(f"{min(width, height):g} is not a width or height")
        numbers = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    points = [min(max(x, 0.0), 1.0) * size[i % 2] for i, x in enumerate(numbers)]
    corners = (min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2]))
    return LabeledObject(int(class_), corners, () if is_box else tuple(points))

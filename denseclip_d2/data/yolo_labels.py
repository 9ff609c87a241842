"""Read label files in YOLO's format: a line for each object, in fractions of the image's size."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ..utils.text import read_text
from .coco_source import LabeledObject, is_image, listed

logger = logging.getLogger(__name__)

CLASSES = "classes.txt"
TOLERANCE = 0.01  # A coordinate this far outside 0..1 is a rounding error. One farther outside is in pixels.


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

"""Images of a dataset, looked at before the first iteration instead of hours into training."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from os import SEEK_END
from threading import BoundedSemaphore
from typing import NamedTuple

from PIL import ImageFile
from tqdm import tqdm

from .agreement import describe_dataset
from .pictures import (
    ImageError,
    check_pixels,
    exif_orientation,
    header_orientation,
    open_image,
    orientation_of,
    upright_size,
)
from .semantic import check_label_mode, check_label_size

logger = logging.getLogger(__name__)

END_OF_JPEG = b"\xff\xd9"
LISTED = 10
"""Faults of one kind that a message lists."""

# Sixteen threads that decode large images at once would need much memory, and hardly less time.
_DECODING = BoundedSemaphore(4)


class _Header(NamedTuple):
    """What a file says of its image: width and height as it is read, Pillow's mode, EXIF orientation."""

    size: tuple[int, int]
    mode: str
    orientation: int


def check_image_files(names: Sequence[str], dicts: Sequence[dict]) -> None:
    """Refuse images of datasets that are not there, not whole, or not of their annotated size.

    Of JPEGs the header and the last two bytes are read: damage between them is not seen. Of PNGs the
    checksums are compared, and other files are decoded. Boxes made for an unturned image are not seen where
    the EXIF orientation keeps the size (2, 3, 4, or any of a square image). Label images are looked at too.

    Args:
        names: of the datasets.
        dicts: their records, in Detectron2's format.

    Raises:
        ImageError: some cannot be used; the message lists them by what to do about them.
    """
    datasets = ", ".join(map(describe_dataset, names))
    logger.info(f"Checking the {len(dicts)} images of {datasets} (DATASETS.CHECK_IMAGES) ...")
    with ThreadPool(16) as pool:  # reading headers waits for the disk, not for the processor
        inspected = pool.imap(_inspect, dicts, chunksize=8)
        results = list(tqdm(inspected, total=len(dicts), delay=2, unit="image"))
    faults = defaultdict(list)
    for result in results:
        if isinstance(result, ImageError):
            faults[result.cure].append(result.fault)
    if faults:
        raise ImageError(
            f"{sum(map(len, faults.values()))} of {len(dicts)} images of {datasets} cannot be used:\n"
            + "\n".join(_listed(of_cure, cure) for cure, of_cure in faults.items())
        )
    deep = [r["file_name"] for r, mode in zip(dicts, results, strict=True) if str(mode).startswith("I")]
    if deep:
        logger.warning(
            "%d images have one channel of 16 bits, such as %s. They are read as value // 256: if white is "
            "less than 65535 in them, they look dark. Scale such images when they are saved.",
            *(len(deep), deep[0]),
        )


def _listed(faults: Sequence[str], cure: str) -> str:
    more = [f"and {len(faults) - LISTED} more"] if len(faults) > LISTED else []
    return "\n".join([*(f"  {fault}" for fault in [*faults[:LISTED], *more]), cure])


def _inspect(record: dict) -> ImageError | str:
    """Return what is wrong with the image of a record or its label images, or else the image's mode."""
    try:
        image, label = record["file_name"], record.get("sem_seg_file_name")
        header = _header(image)
        _check_size(record, header)
        if label:
            size, mode, _ = _header(label, labels=True)
            check_label_mode(mode, label)
            check_label_size(size, label, header.size, image)
        if segments := record.get("pan_seg_file_name"):
            check_label_size(_header(segments).size, segments, header.size, image)
    except ImageError as error:
        return error
    return header.mode


def _check_size(record: dict, header: _Header) -> None:
    """
    Raises:
        ImageError: the image has another size than its annotation.
    """
    image, size, orientation = record["file_name"], header.size, header.orientation
    annotated = (record.get("width", size[0]), record.get("height", size[1]))
    if size == annotated:
        return
    sizes = "{}x{}".format(*size), "{}x{} (width x height)".format(*annotated)
    if orientation >= 5 and annotated == size[::-1]:
        raise ImageError(
            f"{image} is {sizes[0]} turned by its EXIF orientation {orientation}, "
            f"and annotated as {sizes[1]}",
            "Such images were annotated as they are stored, not as they are shown. Remove the orientation, "
            "which leaves the pixels as annotated (exiftool -Orientation= FILES), or annotate them upright.",
        )
    raise ImageError(
        f"{image} is {sizes[0]} and annotated as {sizes[1]}",
        "Correct width and height in the annotations if the boxes fit such images; else use the images that "
        "were annotated.",
    )


def _header(path: str, *, labels: bool = False) -> _Header:
    """Return what the header of a file says, if the file is whole.

    Raises:
        ImageError: it is missing or broken, or its pixels cannot be read as an image's; labels may be any.
    """
    try:
        with open_image(path) as image:
            if not labels:
                check_pixels(image, path)
            if image.format in ("JPEG", "PNG"):
                if image.format == "JPEG" and not _ends_well(image):
                    image.load()
                stored = pending = header_orientation(image)
            else:
                stored = exif_orientation(image)
                with _DECODING:
                    pending = orientation_of(image)
            header = _Header(upright_size(image, pending), image.mode, stored)
        if image.format == "PNG":
            _verify(path)
        return header
    except FileNotFoundError:
        cure = "Correct the names of missing files, or the folder they are looked for in."
        raise ImageError(f"{path} is missing", cure) from None


def _verify(path: str) -> None:
    """Compare a PNG with its checksums.

    Raises:
        ImageError: they differ, or the file is cut short.
    """
    with open_image(path) as image:
        try:
            image.verify()
            return
        except OSError:  # a file that has lost its last bytes alone still has all pixels
            pass
    with open_image(path) as image, _DECODING:
        image.load()


def _ends_well(image: ImageFile.ImageFile) -> bool:
    """Tell whether a JPEG ends as whole ones do; such a file need not be decoded to trust it."""
    assert image.fp
    position = image.fp.tell()
    image.fp.seek(-len(END_OF_JPEG), SEEK_END)
    ends_well = image.fp.read() == END_OF_JPEG
    image.fp.seek(position)
    return ends_well

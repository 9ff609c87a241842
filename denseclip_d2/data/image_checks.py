"""Check the images of datasets before the first iteration, instead of hours into training."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from os import SEEK_END
from threading import BoundedSemaphore
from typing import NamedTuple

from detectron2.data import MetadataCatalog
from PIL import ImageFile
from tqdm import tqdm

from . import image_io
from .image_io import ImageError, open_image
from .semantic import check_label_mode, check_label_size

logger = logging.getLogger(__name__)

END_OF_JPEG = b"\xff\xd9"
LISTED = 10  # faults of one kind in a message

# Sixteen threads that decode large images would need much memory, and hardly less time.
_DECODING = BoundedSemaphore(4)


class _Header(NamedTuple):
    """Width and height as the image is read, Pillow's mode, and the EXIF orientation."""

    size: tuple[int, int]
    mode: str
    orientation: int


def describe_dataset(name: str) -> str:
    """Return the source of own data, the annotation file of other data, or else the name."""
    metadata = MetadataCatalog.get(name)
    return metadata.get("source") or metadata.get("json_file") or name


def check_image_files(names: Sequence[str], dicts: Sequence[dict]) -> None:
    """Check that the images of datasets and their label images are there, whole and of the annotated size.

    Of JPEGs, the header and the last two bytes are read, so damage between them is not seen. Of PNGs, the
    checksums are compared. Other files are decoded. Boxes of an unturned image are not seen if the EXIF
    orientation keeps the size (2, 3, 4, or any of a square image).

    Args:
        names: of the datasets.
        dicts: their records, in Detectron2's format.

    Raises:
        ImageError: images cannot be used. The message groups them by what to do.
    """
    datasets = ", ".join(map(describe_dataset, names))
    logger.info(f"Checking the {len(dicts)} images of {datasets} (DATASETS.CHECK_IMAGES) ...")
    with ThreadPool(16) as pool:  # reading headers waits for the disk, not for the processor
        inspected = pool.imap(_inspect, dicts, chunksize=8)
        results = list(tqdm(inspected, total=len(dicts), delay=2, unit="image"))
    faults = defaultdict(list)
    for result in results:
        if isinstance(result, ImageError):
            faults[result.cure].append(f"  {result.fault}")
    if faults:
        lines = [f"{sum(map(len, faults.values()))} of {len(dicts)} images of {datasets} cannot be used:"]
        for cure, of_cure in faults.items():
            more = [f"  and {len(of_cure) - LISTED} more"] if len(of_cure) > LISTED else []
            lines += [*of_cure[:LISTED], *more, cure]
        raise ImageError("\n".join(lines))
    deep = [r["file_name"] for r, mode in zip(dicts, results, strict=True) if str(mode).startswith("I")]
    if deep:
        logger.warning(
            "%d images have one channel of 16 bits, such as %s. They are read as value // 256, and look dark "
            "if white is less than 65535. Scale such images when you save them.",
            *(len(deep), deep[0]),
        )


def _inspect(record: dict) -> ImageError | str:
    """Return what is wrong with the image of a record or its label images, or else the image's mode."""
    try:
        image = record["file_name"]
        header = _header(image)
        _check_size(record, header)
        if label := record.get("sem_seg_file_name"):
            size, mode, _ = _header(label, labels=True)
            check_label_mode(mode, label)
            check_label_size(size, label, header.size, image)
        if segments := record.get("pan_seg_file_name"):
            check_label_size(_header(segments).size, segments, header.size, image)
    except ImageError as error:
        return error
    return header.mode


def _check_size(record: dict, header: _Header) -> None:
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
        ImageError: the file is missing or broken, or its pixels are not an image's. Labels may have any.
    """
    try:
        with open_image(path) as image:
            if not labels:
                image_io.check_pixels(image, path)
            if image.format in ("JPEG", "PNG"):
                if image.format == "JPEG" and not _ends_well(image):
                    image.load()
                stored = pending = image_io.header_orientation(image)
            else:
                stored = image_io.exif_orientation(image)
                with _DECODING:
                    pending = image_io.orientation_of(image)
            header = _Header(image_io.upright_size(image, pending), image.mode, stored)
        if image.format == "PNG":
            _verify(path)
        return header
    except FileNotFoundError:
        cure = "Correct the names of missing files, or the folder they are looked for in."
        raise ImageError(f"{path} is missing", cure) from None


def _verify(path: str) -> None:
    """Compare a PNG with its checksums. A file that only lacks its last bytes still has all pixels."""
    with open_image(path) as image:
        try:
            image.verify()
            return
        except OSError:
            pass
    with open_image(path) as image, _DECODING:
        image.load()


def _ends_well(image: ImageFile.ImageFile) -> bool:
    """Return whether a JPEG ends as whole files do, and need not be decoded."""
    assert image.fp
    position = image.fp.tell()
    image.fp.seek(-len(END_OF_JPEG), SEEK_END)
    ends_well = image.fp.read() == END_OF_JPEG
    image.fp.seek(position)
    return ends_well

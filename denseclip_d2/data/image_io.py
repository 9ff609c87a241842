"""Read images in one way for training, evaluation, the predictor and every tool."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

MAX_MEGAPIXELS = "DENSECLIP_D2_MAX_MEGAPIXELS"
"""Environment variable: the megapixels of the largest image that is read, instead of Pillow's limit."""

OTHER_SUFFIXES = {
    ".3fr", ".arw", ".avif", ".cr2", ".cr3", ".dng", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jpegxl",
    ".jxl", ".jxr", ".nef", ".orf", ".raf", ".rw2", ".svg", ".wdp",
}  # fmt: skip
"""Suffixes of images that Pillow reads only with other packages, or not at all."""

# What turns the stored pixels upright, by EXIF orientation. From 5 on, width and height change places.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What a PNG with an orientation contains: the names of EXIF's chunk, and of texts.
PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
WHITE_IS_ZERO = 0  # TIFF's photometric interpretation of a negative


class ImageError(ValueError):
    """An image file cannot be used.

    Attributes:
        fault: what is wrong, with the name of the file.
        cure: what to do, in a sentence that fits several files.
    """

    def __init__(self, fault: str, cure: str = ""):
        super().__init__(f"{fault}. {cure}" if cure else fault)
        self.fault, self.cure = fault, cure


def read_image(path: str | Path, pixel_format: str = "BGR") -> np.ndarray:
    """Read the first frame of an image that Pillow reads, turned upright.

    The values of images with 8 bits a channel are those of Detectron2's ``read_image``. Of 16 bits, the upper
    8 are taken: 0 stays black, and 65535 becomes 255. Transparency is dropped, without a background.

    Args:
        pixel_format: "RGB", "BGR", "L" or "YUV-BT.601", as ``INPUT.FORMAT``.

    Returns: (H, W, 3) uint8; (H, W, 1) for "L", and (H, W, 3) float64 for "YUV-BT.601".
    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is not an image, or is broken or too large, or has pixels whose white is unknown.
    """
    with open_image(path) as image:
        return to_array(image, pixel_format, name=str(path))


def to_bgr(image: Image.Image) -> np.ndarray:
    """Return an image upright, (H, W, 3) uint8, BGR. Raise as :func:`to_array` does."""
    return to_array(image, "BGR")


def to_array(image: Image.Image, pixel_format: str, *, name: str = "the image") -> np.ndarray:
    """Convert an image as :func:`read_image` does.

    Raises:
        ImageError: the image has pixels whose white is unknown; ``name`` stands for it in the message.
    """
    check_pixels(image, name)
    orientation = orientation_of(image)
    return convert_PIL_to_numpy(turned(_eight_bits(image), orientation), pixel_format)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return the width and height that :func:`read_image` gives, from the header of a JPEG and most PNGs."""
    with open_image(path) as image:
        return upright_size(image, header_orientation(image))


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Return width and height of an image turned upright from this EXIF orientation."""
    return image.size[::-1] if orientation >= 5 else image.size


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image turned upright from this EXIF orientation."""
    return image if orientation == 1 else image.transpose(TURNS[orientation])


@contextmanager
def open_image(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    """Open a file with Pillow. Errors in the block become the file's, because Pillow reads pixels late.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file cannot be opened, or the block raises an error.
    """
    try:
        with PathManager.open(str(path), "rb") as file, _opened(file) as image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file.") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many kinds for a broken file, such as SyntaxError
        raise ImageError(*_explained(path, error)) from error


def check_pixels(image: Image.Image, name: str) -> None:
    """Raise an error for an image whose pixels have no known white, by its header.

    Raises:
        ImageError: the pixels are floats, or integers of 32 bits or with a sign.
    """
    sixteen_bits = image.format in ("PNG", "PPM")  # whose mode "I" holds 0 to 65535
    if image.mode == "F" or (image.mode == "I" and not sixteen_bits):
        kind = "floating-point pixels" if image.mode == "F" else "pixels of 32 bits, or signed ones"
        raise ImageError(
            f"{name} has {kind} (Pillow's mode {image.mode!r}), and which value is white is not known",
            "Save such images with 8 or 16 bits a channel, from 0 for black to 255 or 65535 for white.",
        )


def orientation_of(image: Image.Image) -> int:
    """Load an image, and return the EXIF orientation, 1 to 8, that its pixels still have to be turned by."""
    image.load()  # Pillow turns TIFFs here, and changes their EXIF only then
    return exif_orientation(image)


def header_orientation(image: ImageFile.ImageFile) -> int:
    """Return :func:`orientation_of` an image just opened, without loading a JPEG or most PNGs."""
    if image.format == "PNG" and not _mentions_exif(image):
        return 1  # Pillow would decode the image to read what follows the pixels
    return exif_orientation(image) if image.format in ("JPEG", "PNG") else orientation_of(image)


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that a file states, 1 to 8; 1 if it states none, or another."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # malformed EXIF raises many kinds, and the pixels are sound
        return 1
    return orientation if orientation in TURNS else 1


def convert_bgr(image: np.ndarray, pixel_format: str) -> np.ndarray:
    """Convert an image (H, W, 3) uint8, BGR, to ``INPUT.FORMAT``. See :func:`read_image`."""
    if pixel_format == "BGR":
        return image
    rgb = image[:, :, ::-1]
    return rgb if pixel_format == "RGB" else convert_PIL_to_numpy(Image.fromarray(rgb), pixel_format)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the upper 8 of the 16 bits of an image. Return an image of 8 bits itself."""
    if not image.mode.startswith("I"):
        return image  # of RGB with 16 bits a channel, Pillow has taken the upper 8
    tags = getattr(image, "tag_v2", {})  # Pillow does not spread the 12 bits of a TIFF over 16
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    values = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
        values = 255 - values  # as Pillow does with 8 bits
    return Image.fromarray(values)


def _mentions_exif(image: ImageFile.ImageFile) -> bool:
    """Return whether a PNG that has just been opened may have an orientation, also after its pixels."""
    assert image.fp
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    return any(mark in content for mark in PNG_EXIF)


def _opened(file: BinaryIO) -> ImageFile.ImageFile:
    """Open an image within the limit of :data:`MAX_MEGAPIXELS`, or else within Pillow's."""
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        limit = os.environ.get(MAX_MEGAPIXELS)
        if not limit:
            raise
    try:
        Image.MAX_IMAGE_PIXELS = math.ceil(float(limit) * 1e6 / 2)  # Pillow refuses twice as many
    except (ValueError, OverflowError):
        cure = "Set it to a number of megapixels, such as 500."
        raise ImageError(f"The environment variable {MAX_MEGAPIXELS} is {limit!r}", cure) from None
    file.seek(0)
    return Image.open(file)


def _explained(path: str | Path, error: Exception) -> tuple[str, str]:
    """Return what is wrong with a file, and what to do."""
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.4g} megapixels, the limit "
            "against files made to exhaust memory",
            f"If you trust such files, set the environment variable {MAX_MEGAPIXELS} to a higher number.",
        )
    if isinstance(error, MemoryError):
        return f"{path} does not fit into memory", "Make such images smaller, or cut them into tiles."
    if isinstance(error, UnidentifiedImageError):
        return (
            f"{path} is not an image that Pillow reads here",
            "Convert HEIC, JPEG XL and raw photos to JPEG or PNG; fetch broken files again.",
        )
    if isinstance(error, OSError) and error.errno:
        return f"{path} cannot be read: {error.strerror}", "Repair its permissions or its disk."
    return f"{path} is broken or truncated ({error})", "Fetch or save such files again."

"""Images from files, read in one way by training, evaluation, the predictor and every tool."""

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
"""Environment variable: megapixels up to which an image is read, in place of Pillow's own limit."""

OTHER_SUFFIXES = {
    ".3fr", ".arw", ".avif", ".cr2", ".cr3", ".dng", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jpegxl",
    ".jxl", ".jxr", ".nef", ".orf", ".raf", ".rw2", ".svg", ".wdp",
}  # fmt: skip
"""Of image files that Pillow reads with more packages only, or not at all."""

# EXIF orientation, and what turns the stored pixels upright; from 5 on, width and height change places.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What a PNG has in it, anywhere, where it has an orientation: names of EXIF's chunk, and of texts.
PNG_EXIF = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")

WHITE_IS_ZERO = 0
"""How a TIFF says that its values are those of a negative."""


class ImageError(ValueError):
    """An image file that cannot be used.

    Attributes:
        fault: what is wrong, with the file's name.
        cure: what to do about it, in a sentence that fits several files.
    """

    def __init__(self, fault: str, cure: str = ""):
        super().__init__(f"{fault}. {cure}" if cure else fault)
        self.fault, self.cure = fault, cure


def read_image(path: str | Path, pixel_format: str = "BGR") -> np.ndarray:
    """Read a file of any of Pillow's formats upright, its first frame where it has several.

    Values are those of Detectron2's ``read_image`` for images of 8 bits a channel. Of 16 bits, the upper 8
    are taken: 0 stays black, and 65535 becomes 255. Transparency is left out, without a background.

    Args:
        path: of the file.
        pixel_format: "RGB", "BGR", "L" or "YUV-BT.601", as ``INPUT.FORMAT``.

    Returns: (H, W, 3) uint8; (H, W, 1) for "L", and (H, W, 3) float64 for "YUV-BT.601".
    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is no image, a broken one, too large, or has pixels whose white is unknown.
    """
    with open_image(path) as image:
        return to_array(image, pixel_format, name=str(path))


def read_picture(path: str | Path) -> np.ndarray:
    """Return :func:`read_image` of a file, (H, W, 3) uint8, BGR; raise as it does."""
    return read_image(path)


def as_bgr(image: Image.Image) -> np.ndarray:
    """Return an image upright, (H, W, 3) uint8, BGR; raise as :func:`to_array` does."""
    return to_array(image, "BGR")


def to_array(image: Image.Image, pixel_format: str, *, name: str = "the image") -> np.ndarray:
    """Convert an image as :func:`read_image` does.

    Raises:
        ImageError: it has pixels whose white is unknown; ``name`` stands for it in the message.
    """
    check_pixels(image, name)
    orientation = orientation_of(image)
    return convert_PIL_to_numpy(turned(_eight_bits(image), orientation), pixel_format)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return width and height of a file as :func:`read_image` gives it; raise as it does.

    Of JPEGs and PNGs the header is read, and no pixels.
    """
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
    """Open a file with Pillow, for a block whose errors are then the file's.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: it cannot be opened; or the block raises, as Pillow reads pixels when they are used.
    """
    try:
        with PathManager.open(str(path), "rb") as file, _opened(file) as image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file.") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow has many words for a broken file, SyntaxError among them
        raise ImageError(*_explained(path, error)) from error


def check_pixels(image: Image.Image, name: str) -> None:
    """Refuse an image by what its header says of its pixels.

    Raises:
        ImageError: its values have no known white: floats, and integers of 32 bits or with a sign.
    """
    sixteen_bits = image.format in ("PNG", "PPM")  # whose mode "I" holds 0 to 65535
    if image.mode == "F" or (image.mode == "I" and not sixteen_bits):
        kind = "floating-point pixels" if image.mode == "F" else "pixels of 32 bits, or signed ones"
        raise ImageError(
            f"{name} has {kind} (Pillow's mode {image.mode!r}), and which value is white is not known",
            "Save such images with 8 or 16 bits a channel, from 0 for black to 255 or 65535 for white.",
        )


def orientation_of(image: Image.Image) -> int:
    """Load an image, and return the EXIF orientation, 1 to 8, by which its pixels are yet to be turned."""
    image.load()  # Pillow turns TIFFs by itself there, and only then says so
    return exif_orientation(image)


def header_orientation(image: ImageFile.ImageFile) -> int:
    """Return :func:`orientation_of` an image just opened, without loading a JPEG, and most PNGs."""
    if image.format == "PNG" and not _mentions_exif(image):
        return 1  # Pillow would decode the image to look behind its pixels
    return exif_orientation(image) if image.format in ("JPEG", "PNG") else orientation_of(image)


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that a file states, 1 to 8; 1 if it states none, or another."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # of as many kinds as there are ways to write EXIF wrong; the pixels are sound
        return 1
    return orientation if orientation in TURNS else 1


def ordered(picture: np.ndarray, pixel_format: str) -> np.ndarray:
    """Return an image (H, W, 3) uint8, BGR, as ``INPUT.FORMAT`` has it: see :func:`read_image`."""
    if pixel_format == "BGR":
        return picture
    rgb = picture[:, :, ::-1]
    return rgb if pixel_format == "RGB" else convert_PIL_to_numpy(Image.fromarray(rgb), pixel_format)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image with the upper 8 of its 16 bits, or itself where it has 8."""
    if not image.mode.startswith("I"):
        return image  # of RGB with 16 bits a channel, Pillow has taken the upper 8
    tags = getattr(image, "tag_v2", {})  # of a TIFF, whose 12 bits Pillow does not spread over 16
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    values = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
        values = 255 - values  # as Pillow does where there are 8 bits
    return Image.fromarray(values)


def _mentions_exif(image: ImageFile.ImageFile) -> bool:
    """Tell whether a PNG that has just been opened may have an orientation, also behind its pixels."""
    assert image.fp
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    return any(mark in content for mark in PNG_EXIF)


def _opened(file: BinaryIO) -> ImageFile.ImageFile:
    """Open an image within the limit of :data:`MAX_MEGAPIXELS` where it is set, else within Pillow's."""
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
    """Return what is wrong with a file, and what to do about it."""
    if isinstance(error, Image.DecompressionBombError):
        limit = f"{2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.4g} megapixels"
        return (
            f"{path} has more than {limit}, the limit against files made to exhaust memory",
            f"If you trust such files, set the environment variable {MAX_MEGAPIXELS} to a higher number.",
        )
    if isinstance(error, MemoryError):
        return f"{path} does not fit into memory", "Make such images smaller, or cut them into tiles."
    if isinstance(error, UnidentifiedImageError):
        return (
            f"{path} is no image of a kind that Pillow reads here",
            "Convert HEIC, JPEG XL and raw photos to JPEG or PNG; fetch broken files again.",
        )
    if isinstance(error, OSError) and error.errno:
        return f"{path} cannot be read: {error.strerror}", "Mend its permissions or its disk."
    return f"{path} is broken or truncated ({error})", "Fetch or save such files again."

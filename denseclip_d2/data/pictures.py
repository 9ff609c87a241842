"""Pictures as they come, without a dataset."""

from pathlib import Path

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps


def read_picture(path: str | Path) -> np.ndarray:
    """A file of any of Pillow's formats, turned as its camera says.

    Returns: (H, W, 3) uint8, BGR.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no picture, or a broken one.
    """
    try:
        with PathManager.open(str(path), "rb") as file, Image.open(file) as image:
            return as_bgr(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file.") from None
    except Exception as error:  # Pillow has many words for a broken file, SyntaxError among them
        raise ValueError(f"{path} cannot be read as a picture: {error}.") from error


def as_bgr(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, BGR, turned as the camera says."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would make white of all that is over 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return convert_PIL_to_numpy(image, "BGR")


def ordered(picture: np.ndarray, pixel_format: str) -> np.ndarray:
    """A picture (H, W, 3), BGR, with its channels in the order of ``INPUT.FORMAT``."""
    return picture[:, :, ::-1] if pixel_format == "RGB" else picture

"""Images as a user gives them, and as Detectron2's models take them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..data.image_io import convert_bgr, read_image, to_bgr
from ..data.mapper import ResizeShortestEdge

ImageInput = str | Path | Image.Image | np.ndarray
"""A file, a PIL image, or an array (H, W, 3) uint8, BGR as for Detectron2's predictor."""


def model_input(image: ImageInput, resize: ResizeShortestEdge, pixel_format: str) -> dict:
    """Return an image as Detectron2's models take it.

    Raises:
        FileNotFoundError, ValueError: a file that does not exist or cannot be read; an array of another kind.
    """
    image = _as_bgr(image)
    resized_by = resize.get_transform(image).apply_image
    if pixel_format in ("RGB", "BGR"):
        resized = convert_bgr(resized_by(image), pixel_format)
    else:  # as in evaluation: other formats are not bytes of three channels, which are resized otherwise
        resized = resized_by(convert_bgr(image, pixel_format))
    pixels = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
    return {"image": pixels, "height": image.shape[0], "width": image.shape[1]}


def _as_bgr(image: ImageInput) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_bgr(image)
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"An image array is (H, W, 3) uint8, BGR, not {image.shape} {image.dtype}.")
    return image

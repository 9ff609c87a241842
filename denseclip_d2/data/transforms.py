"""Augmentations that Detectron2 does not have."""

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Resize like Detectron2, but keep at least one pixel on each side of a thin and long image."""

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Return height and width. A ``short_edge_length`` of 0 keeps the size."""
        if not short_edge_length:
            return oldh, oldw
        height, width = T.ResizeShortestEdge.get_output_shape(oldh, oldw, short_edge_length, max_size)
        return max(height, 1), max(width, 1)

    def get_transform(self, image) -> T.Transform:
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(transform.new_h, 1), max(transform.new_w, 1)
        return transform


class RandomScaleShortestEdge(ResizeShortestEdge):
    """Resize to a shortest and a longest edge, both multiplied by one random factor.

    The released segmentors were trained with MMSegmentation's ``Resize(img_scale=(max_size,
    short_edge_length), ratio_range=scale_range)``. The sizes are the same, but its filter is OpenCV's.
    """

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int,
        sample_style: str,
        interp: int,
        scale_range: tuple[float, float],
    ):
        """
        Args:
            short_edge_length, max_size, sample_style, interp: as for Detectron2's ``ResizeShortestEdge``.
            scale_range: bounds of the uniform factor.
        """
        super().__init__(short_edge_length, max_size, sample_style, interp)
        self.scale_range = scale_range

    def get_transform(self, image) -> T.Transform:
        scale = self._rand_range(*self.scale_range)
        lengths = [max(int(scale * length), 1) for length in self.short_edge_length]
        scaled = ResizeShortestEdge(lengths, int(scale * self.max_size), self.sample_style, self.interp)
        return scaled.get_transform(image)


class PadToSize(T.Augmentation):
    """Pad at the right and at the bottom, for batches of one size."""

    def __init__(self, size: Sequence[int], color: Sequence[float], label: int):
        """
        Args:
            size: height and width. A larger image stays as it is.
            color: of the padding, rounded. The mean of the pixels becomes 0 after the normalization, as
                Detectron2's padding, except for the rounding.
            label: of the padding.
        """
        self._init(locals())

    def get_transform(self, image) -> T.Transform:
        height, width = image.shape[:2]
        y1, x1 = (max(size - side, 0) for size, side in zip(self.size, (height, width), strict=True))
        if not (y1 or x1):
            return T.NoOpTransform()
        return _ColorPadTransform(0, 0, x1, y1, width, height, self.color, self.label)


class _ColorPadTransform(T.PadTransform):
    """Pad as fvcore does, but with a color: ``pad_value`` is a sequence."""

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        height, width, channels = image.shape
        padded = np.empty((height + self.y1, width + self.x1, channels), image.dtype)
        padded[:] = np.round(self.pad_value)
        padded[:height, :width] = image
        return padded

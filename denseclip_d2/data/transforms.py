"""Augmentations that Detectron2 does not have."""

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's resizing, but each side of a thin and very long image keeps at least one pixel."""

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Return height and width as Detectron2's method does; 0 as ``short_edge_length`` keeps the size."""
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
    """Resizing to a shortest and a longest edge that are both multiplied by one random factor.

    The released segmentors were trained with MMSegmentation's, ``Resize(img_scale=(max_size,
    short_edge_length), ratio_range=scale_range)``: the same sizes, with OpenCV's filter for Pillow's.
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
            short_edge_length, max_size, sample_style, interp: as of Detectron2's ``ResizeShortestEdge``.
            scale_range: bounds of the factor, which is uniform between them.
        """
        super().__init__(short_edge_length, max_size, sample_style, interp)
        self.scale_range = scale_range

    def get_transform(self, image) -> T.Transform:
        scale = self._rand_range(*self.scale_range)
        lengths = [max(int(scale * length), 1) for length in self.short_edge_length]
        scaled = ResizeShortestEdge(lengths, int(scale * self.max_size), self.sample_style, self.interp)
        return scaled.get_transform(image)


class PadToSize(T.Augmentation):
    """Padding at the right and at the bottom, for batches of one size."""

    def __init__(self, size: Sequence[int], color: Sequence[float], label: int):
        """
        Args:
            size: height and width; an image that is larger is left so.
            color: of the padding, rounded. That of the pixels' mean is what Detectron2 pads with, zero after
                the normalization, but for the rounding.
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
    """fvcore's padding, which has one value for all channels, with a color: ``pad_value`` is a sequence."""

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        height, width, channels = image.shape
        padded = np.empty((height + self.y1, width + self.x1, channels), image.dtype)
        padded[:] = np.round(self.pad_value)
        padded[:height, :width] = image
        return padded

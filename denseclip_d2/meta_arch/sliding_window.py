from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, product
from math import prod

from torch import Tensor

Segment = Callable[[list[Tensor]], list[Tensor]]
Window = tuple[slice, slice, slice]


@dataclass(frozen=True)
class SlidingWindow:
    """Segments an image window by window and averages the logits of overlapping windows, as released.

    Windows are ``stride`` apart, from the top left corner. A window that would leave the image is shifted
    inwards. If the image is smaller than a window, the window has the size of the image.
    """

    size: tuple[int, int]
    """Height and width of a window, in pixels."""
    stride: tuple[int, int]
    """Distance of windows, down and across, in pixels."""
    max_pixels: int
    """The greatest number of pixels in the windows of a batch, which limits the memory."""

    def __post_init__(self):
        """
        Raises:
            ValueError: windows that leave gaps or have more than ``max_pixels``.
        """
        if len(self.size) != 2 or len(self.stride) != 2 or min(*self.size, *self.stride) < 1:
            raise ValueError(
                f"The sliding window has size {self.size} and stride {self.stride}. Give each a height and a "
                "width of at least 1 pixel."
            )
        if self.stride[0] > self.size[0] or self.stride[1] > self.size[1]:
            raise ValueError(
                f"The sliding window's stride {self.stride} is larger than its size {self.size}, which would "
                "leave pixels out. Lower the stride."
            )
        if prod(self.size) > self.max_pixels:
            raise ValueError(
                f"A sliding window of size {self.size} has {prod(self.size)} pixels, and max_pixels is "
                f"{self.max_pixels}. Lower the size, or raise max_pixels if memory allows."
            )

    def average(self, segment: Segment, image: Tensor) -> Tensor:
        """Segment an image.

        Args:
            segment: returns logits (K, h, w) of each of a list of images (3, h, w).
            image: (3, H, W).
        Returns: (K, H, W) logits.
        """
        parts = self._segmented(segment, image)
        first = next(parts)
        logits = first[1].new_zeros(len(first[1]), *image.shape[1:])
        counts = logits.new_zeros(image.shape[1:])
        for window, part in chain([first], parts):
            logits[window] += part
            counts[window[1:]] += 1
        return logits.div_(counts)

    def windows(self, height: int, width: int) -> list[Window]:
        """Return the windows of an image (3, height, width), row by row."""
        rows = _spans(height, self.size[0], self.stride[0])
        columns = _spans(width, self.size[1], self.stride[1])
        return [(slice(None), row, column) for row, column in product(rows, columns)]

    def _segmented(self, segment: Segment, image: Tensor) -> Iterator[tuple[Window, Tensor]]:
        """Yield each window and its logits."""
        windows, batch_size = self.windows(*image.shape[1:]), self.max_pixels // prod(self.size)
        for i in range(0, len(windows), batch_size):
            batch = windows[i : i + batch_size]
            yield from zip(batch, segment([image[window] for window in batch]), strict=True)


def _spans(side: int, size: int, stride: int) -> list[slice]:
    last = max(side - size, 0)
    return [slice(start, min(start + size, side)) for start in (*range(0, last, stride), last)]

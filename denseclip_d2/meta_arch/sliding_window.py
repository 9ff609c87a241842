from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, product
from math import prod

from torch import Tensor

Segment = Callable[[list[Tensor]], list[Tensor]]
Window = tuple[slice, slice, slice]


@dataclass(frozen=True)
class SlidingWindow:
    """Segments an image window by window and averages the logits where windows overlap, as released.

    Windows go over the image in steps of ``stride`` from the top left corner. Those that would leave the
    image are shifted inwards; in a direction in which the image is smaller than a window, one window is as
    large as the image.
    """

    size: tuple[int, int]
    """Height and width of a window, in pixels."""
    stride: tuple[int, int]
    """Its steps down and across, in pixels."""
    max_pixels: int
    """Pixels of the windows that are segmented at once, at most: what bounds the memory."""

    def __post_init__(self):
        """
        Raises:
            ValueError: windows that leave gaps or are larger than ``max_pixels``.
        """
        if len(self.size) != 2 or len(self.stride) != 2 or min(*self.size, *self.stride) < 1:
            raise ValueError(
                f"TEST.SLIDING_WINDOW has SIZE {self.size} and STRIDE {self.stride}: each needs a height and "
                "a width in pixels, of at least 1."
            )
        if self.stride[0] > self.size[0] or self.stride[1] > self.size[1]:
            raise ValueError(
                f"TEST.SLIDING_WINDOW.STRIDE {self.stride} is larger than SIZE {self.size}: pixels between "
                "windows would be left out. Make STRIDE at most SIZE."
            )
        if prod(self.size) > self.max_pixels:
            raise ValueError(
                f"A window of TEST.SLIDING_WINDOW.SIZE {self.size} has {prod(self.size)} pixels, and "
                f"TEST.SLIDING_WINDOW.MAX_PIXELS allows {self.max_pixels} at once. Make SIZE smaller, "
                "or raise MAX_PIXELS if memory allows."
            )

    def average(self, segment: Segment, image: Tensor) -> Tensor:
        """
        Args:
            segment: gives each of some images (3, h, w) its logits (K, h, w).
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
        """Where windows lie in an image (3, height, width), row by row."""
        rows, columns = (
            _spans(side, size, stride)
            for side, size, stride in zip((height, width), self.size, self.stride, strict=True)
        )
        return [(slice(None), row, column) for row, column in product(rows, columns)]

    def _segmented(self, segment: Segment, image: Tensor) -> Iterator[tuple[Window, Tensor]]:
        """Each window and its logits; at most ``max_pixels`` are segmented at once."""
        windows, at_once = self.windows(*image.shape[1:]), self.max_pixels // prod(self.size)
        for i in range(0, len(windows), at_once):
            batch = windows[i : i + at_once]
            yield from zip(batch, segment([image[window] for window in batch]), strict=True)


def _spans(side: int, size: int, stride: int) -> list[slice]:
    last = max(side - size, 0)
    return [slice(start, min(start + size, side)) for start in (*range(0, last, stride), last)]

"""The sizes of images that scale to a half pixel, where the way of computing decides what they become."""

from functools import cache

import numpy as np

from ..data.transforms import ResizeShortestEdge

LARGEST = 16384
"""The longest side of an image for which :func:`rounded_down` is complete."""


@cache
def rounded_down(shortest: int, longest: int) -> np.ndarray:
    """Return the sizes that scale to a half and that ``ResizeShortestEdge`` rounds down.

    It computes in float64, where some halves come out a little smaller. There is no simpler rule for which
    ones, so that exported files hold this table: about 3000 sizes for 800 and 1333.

    Args:
        shortest, longest: of ``ResizeShortestEdge``.
    Returns: (n, 2) int64, the shorter and the longer side, up to ``LARGEST``.
    """
    halves = longer_halves(shortest, longest, LARGEST), shorter_halves(shortest, longest, LARGEST)
    sizes = np.concatenate(halves)
    return sizes[fitted(sizes, shortest, longest) < _half_up(sizes, shortest, longest)]


def telling_sizes(shortest: int, longest: int) -> list[tuple[int, int]]:
    """Return sizes of images for which a file has to compute as ``ResizeShortestEdge`` does.

    The longer side of the first scales to a half, which is rounded up. The shorter side of the second scales
    to a half because of ``longest``; this half is rounded down. Smaller images are preferred: what a model
    detects is compared in their own size.

    Returns: heights and widths; one or both are left out if there is none.
    """
    largest = min(2 * max(shortest, longest), 8 * shortest)
    kinds = (
        (longer_halves(shortest, longest, largest), 4 / 3, False),
        (shorter_halves(shortest, longest, largest), 2.0, True),
    )
    chosen = [
        _most_telling(x, shortest, longest, aspect=aspect, down=down) for x, aspect, down in kinds if len(x)
    ]
    return [size[::-1] if i % 2 else size for i, size in enumerate(chosen)]


def _most_telling(
    sizes: np.ndarray, shortest: int, longest: int, *, aspect: float, down: bool
) -> tuple[int, int]:
    """Return the size with the properties of :func:`telling_sizes`; of several, one near to ``aspect``."""
    as_wanted = (_half_up(sizes, shortest, longest) > fitted(sizes, shortest, longest)) == down
    low, high = sizes.T
    distance = np.abs(np.log(low / (0.75 * shortest))) + np.abs(np.log(high / low / aspect))
    large = low * high > 1.5 * shortest * longest
    low, high = sizes[np.lexsort((distance, ~as_wanted, large))[0]].tolist()
    return low, high


def fitted(sizes: np.ndarray, shortest: int, longest: int) -> np.ndarray:
    """Return the sum of the sides that ``ResizeShortestEdge`` gives each size, (n,) int64."""
    shape = ResizeShortestEdge.get_output_shape
    return np.array([sum(shape(low, high, shortest, longest)) for low, high in sizes.tolist()])


def _half_up(sizes: np.ndarray, shortest: int, longest: int) -> np.ndarray:
    """Return the same with every half rounded up."""
    low, high = sizes.T
    capped = shortest * high > longest * low
    new, old = np.where(capped, longest, shortest), np.where(capped, high, low)
    return ((2 * new * sizes.T + old) // (2 * old)).clip(1).sum(axis=0)


def longer_halves(shortest: int, longest: int, largest: int) -> np.ndarray:
    """Return the sizes whose longer side scales to a half: (n, 2) int64, shorter and longer side.

    Args:
        shortest, longest: of ``ResizeShortestEdge``.
        largest: of the longer sides.
    """
    low = np.arange(1, largest + 1)
    low, high = _scaled_to_halves(low, shortest, np.minimum(longest * low // shortest, largest))
    return np.stack([low, high], axis=1)[low < high]


def shorter_halves(shortest: int, longest: int, largest: int) -> np.ndarray:
    """Return the sizes whose shorter side scales to a half, since the longer is to be ``longest``.

    Args and returns: see :func:`longer_halves`.
    """
    high = np.arange(1, largest + 1)
    high, low = _scaled_to_halves(high, longest, np.minimum(shortest * high // longest, high))
    return np.stack([low, high], axis=1)[shortest * high > longest * low]


def _scaled_to_halves(old: np.ndarray, new: int, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each ``old`` with every side, up to its ``most``, for which new * side / old is a half."""
    shared = np.gcd(old, 2 * new)
    step = old // shared  # sides are odd multiples of it
    count = np.where(2 * new // shared % 2 == 1, (most // step + 1) // 2, 0)
    number = np.arange(count.sum()) - (count.cumsum() - count).repeat(count)
    return old.repeat(count), step.repeat(count) * (2 * number + 1)

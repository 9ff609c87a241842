"""Numpy arrays of numbers in pickles, rebuilt without numpy's unpickling, which trusts the file's sizes."""

import pickle
import re
from collections.abc import Callable
from typing import Literal

import numpy as np

_NUMBERS = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)")


class ArrayType:
    """Replace ``numpy.dtype`` in a pickle; only numbers are accepted."""

    order: Literal["<", ">", "|", "="]

    def __init__(self, code: str, *flags):
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def is_number(self) -> bool:
        return isinstance(self.code, str) and bool(_NUMBERS.fullmatch(self.code)) and self.order in "<>|="

    def numbers(self, raw: bytes | str) -> np.ndarray:
        """
        Raises:
            UnpicklingError: the data are no numbers.
        """
        if not self.is_number():
            raise pickle.UnpicklingError(f"an array of {self.code!r}")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # as Python 2 wrote it
        dtype = np.dtype(self.code).newbyteorder(self.order)
        return np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="))


class PickledArray:
    """Replace ``numpy.ndarray`` in a pickle.

    Attributes:
        value: the array.
    """

    def __init__(self, *_):
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = dtype.numbers(raw).reshape(shape, order="F" if fortran else "C")


def _scalar(dtype: ArrayType, raw: bytes | str):
    """Return a number; None for strings and dates, which weights never are."""
    return dtype.numbers(raw)[0].item() if dtype.is_number() else None


NUMPY: dict[str, Callable] = {
    "numpy.ndarray": PickledArray,
    "numpy.dtype": ArrayType,
    "numpy.core.multiarray._reconstruct": PickledArray,
    "numpy._core.multiarray._reconstruct": PickledArray,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}
"""Names in pickles, and what is called in their place."""

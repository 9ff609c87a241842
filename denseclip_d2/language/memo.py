from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_Kept = tuple[T, tuple[Hashable, ...], list[tuple[Tensor, Tensor, tuple]]]
"""A value, the settings it was made with, and the tensors: each itself, its numbers, and its state then."""


class TensorMemo(Generic[T]):
    """Remembers what was made from tensors, until one of them is replaced or changes.

    A tensor has changed when its version counter has (any in-place operation, optimizer's steps and
    ``load_state_dict`` included), or where its numbers lie (``.data = ...``, a change of device or dtype).
    Writing *through* ``.data`` leaves no trace on a tensor: then :meth:`forget`. Copies and pickles of a memo
    are empty.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._kept: _Kept[T] | None = None

    def __call__(self, make: Callable[[], T], tensors: Iterable[Tensor], *settings: Hashable) -> T:
        """What ``make()`` gives, or gave when ``tensors`` and ``settings`` were the same."""
        tensors, kept = list(tensors), self._kept
        if any(t.is_inference() for t in tensors):  # they have no version counter
            return make()
        if kept is None or not _is_current(kept, tensors, settings):
            with torch.inference_mode(False), torch.no_grad():  # usable outside inference mode, too
                value = make()
            made_from: list[Tensor] = [*tensors, value] if isinstance(value, Tensor) else tensors
            # Held as they are now, so that neither an id nor an address can be given to another tensor.
            kept = self._kept = value, settings, [(t, t.detach(), _state(t)) for t in made_from]
        return kept[0]

    def __reduce__(self):
        return type(self), ()


def _state(tensor: Tensor) -> tuple:
    return tensor._version, tensor.data_ptr(), tensor.stride(), tensor.dtype, tensor.device


def _is_current(kept: _Kept, tensors: list[Tensor], settings: tuple[Hashable, ...]) -> bool:
    value, kept_settings, made_from = kept
    if isinstance(value, Tensor):
        tensors = [*tensors, value]
    return (
        settings == kept_settings
        and len(tensors) == len(made_from)
        and all(
            t is old and _state(t) == state for t, (old, _, state) in zip(tensors, made_from, strict=True)
        )
    )

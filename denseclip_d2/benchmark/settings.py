from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.config import CfgNode

CANDIDATES = ("CLIP", "DenseCLIP", "Detectron2")


class Case(NamedTuple):
    """What detectors run on: one value of each axis.

    Attributes:
        classes: number of classes K.
        size: height and width of images.
        batch: images in a batch.
        threads: PyTorch's threads, on CPUs.
    """

    classes: int
    size: tuple[int, int]
    batch: int
    threads: int


@dataclass(frozen=True)
class Settings:
    """What to measure on.

    Attributes:
        classes, sizes, batches, threads: values of each axis of :class:`Case`. Each axis is varied on its
            own; the other axes stay at their first value.
        repeats: number of timed rounds.
        candidates: detectors, some of :data:`CANDIDATES`.
    """

    cfg: CfgNode
    classes: list[int]
    sizes: list[tuple[int, int]]
    batches: list[int]
    threads: list[int]
    repeats: int
    candidates: Sequence[str] = CANDIDATES

    @property
    def device(self) -> torch.device:
        return torch.device(self.cfg.MODEL.DEVICE)

    @property
    def batch(self) -> int:
        return self.batches[0]

    def sweep(self) -> Iterator[Case]:
        """Yield the first value of all axes, then the other values of each axis."""
        first = Case(self.classes[0], self.sizes[0], self.batches[0], self.threads[0])
        yield first
        axes: dict[str, list] = {
            "classes": self.classes, "size": self.sizes, "batch": self.batches, "threads": self.threads,
        }  # fmt: skip
        for axis, values in axes.items():
            yield from (first._replace(**{axis: value}) for value in values[1:])

    def describe(self, case: Case) -> str:
        """Describe a case in words; name the batch and the threads only if there are several values."""
        text = f"{case.size[0]} x {case.size[1]}, K = {case.classes}"
        text += f", batch {case.batch}" if len(self.batches) > 1 else ""
        return text + (f", threads {case.threads}" if len(self.threads) > 1 else "")


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let PyTorch use this number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def with_values(cfg: CfgNode, *pairs: object) -> CfgNode:
    """Return a copy of a config with other values at some keys: key, value, key, value and so on."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(pairs)
    return cfg

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.config import CfgNode

CONTENDERS = ("CLIP", "DenseCLIP", "Detectron2")


class Case(NamedTuple):
    """What detectors are measured on: a place on each of the axes along which they can grow.

    Attributes:
        classes: their number K.
        size: height and width of images.
        batch: images.
        threads: of PyTorch, on CPUs.
    """

    classes: int
    size: tuple[int, int]
    batch: int
    threads: int

    def numbers(self) -> dict[str, int]:
        """By axis; a size's is its number of pixels."""
        return {**self._asdict(), "size": self.size[0] * self.size[1]}


@dataclass(frozen=True)
class Settings:
    """What to measure on.

    Attributes:
        classes, sizes, batches, threads: the values of each axis of :class:`Case`. The first ones are where
            it begins; along each axis the others are measured alone.
        repeats: rounds that are timed.
        contenders: which detectors, of :data:`CONTENDERS`.
        images: of the simulated dataset that reading is timed on.
        arithmetic: tell what DenseCLIP would take beside CLIP if each multiply-add took as long.
    """

    cfg: CfgNode
    classes: list[int]
    sizes: list[tuple[int, int]]
    batches: list[int]
    threads: list[int]
    repeats: int
    contenders: Sequence[str] = CONTENDERS
    images: int = 1000
    arithmetic: bool = False

    @property
    def device(self) -> torch.device:
        return torch.device(self.cfg.MODEL.DEVICE)

    @property
    def batch(self) -> int:
        return self.batches[0]

    @property
    def grows(self) -> bool:
        """Whether there are several values of an axis."""
        return len({*self.growth()}) > 1

    def growth(self) -> Iterator[Case]:
        """The first values of all axes, then the others of each."""
        first = Case(self.classes[0], self.sizes[0], self.batches[0], self.threads[0])
        yield first
        axes: dict[str, list] = {
            "classes": self.classes, "size": self.sizes, "batch": self.batches, "threads": self.threads,
        }  # fmt: skip
        for axis, values in axes.items():
            yield from (first._replace(**{axis: value}) for value in values[1:])

    def cases(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """What kernels are measured on: numbers of classes, and sizes."""
        yield from dict.fromkeys((case.classes, case.size) for case in self.growth())

    def describe(self, case: Case) -> str:
        """A case in words; of the batch and the threads only where there are several."""
        text = f"{case.size[0]} x {case.size[1]}, K = {case.classes}"
        text += f", batch {case.batch}" if len(self.batches) > 1 else ""
        return text + (f", threads {case.threads}" if len(self.threads) > 1 else "")


def with_value(cfg: CfgNode, key: str, value: object) -> CfgNode:
    """A config with another value at a key."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([key, value])
    return cfg

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

CONTENDERS = ("CLIP", "DenseCLIP", "Detectron2")


@dataclass(frozen=True)
class Settings:
    """What to measure on.

    Attributes:
        classes: numbers of classes; with several sizes, sizes are measured at the first number, and numbers
            at the first size.
        sizes: heights and widths of images.
        batch: images.
        repeats: rounds that are timed.
        contenders: which detectors, of :data:`CONTENDERS`.
        images: of the simulated dataset that reading is timed on.
    """

    cfg: CfgNode
    classes: list[int]
    sizes: list[tuple[int, int]]
    batch: int
    repeats: int
    contenders: Sequence[str] = CONTENDERS
    images: int = 1000

    @property
    def device(self) -> torch.device:
        return torch.device(self.cfg.MODEL.DEVICE)

    def cases(self) -> Iterator[tuple[int, tuple[int, int]]]:
        yield from ((number, self.sizes[0]) for number in self.classes)
        yield from ((self.classes[0], size) for size in self.sizes[1:])


def with_value(cfg: CfgNode, key: str, value: object) -> CfgNode:
    """A config with another value at a key."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([key, value])
    return cfg

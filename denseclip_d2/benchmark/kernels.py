"""Each kernel and its definition, on inputs of a detector's shapes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from ..guidance.losses import TARGET_STRIDE
from ..kernels import pixel_text_bce, pixel_text_bce_definition
from .detectors import random_input
from .measure import Step, synchronize

STRIDE = 32


@dataclass(frozen=True)
class KernelCase:
    """One kernel, forward and backward.

    Attributes:
        definition, kernel: the same computation.
        floor_bytes: that have to be read and written at least: inputs, outputs, gradients, each once.
    """

    name: str
    definition: Step
    kernel: Step
    floor_bytes: int


def kernel_cases(
    batch: int, num_classes: int, size: tuple[int, int], device: torch.device
) -> Iterator[KernelCase]:
    """Every kernel there is, for images of a size."""
    height, width = (side // STRIDE for side in size)
    factor = STRIDE // TARGET_STRIDE
    scores = torch.rand(batch, num_classes, height, width, device=device).mul_(2).sub_(1).requires_grad_()
    objects = [random_input(size, i, num_classes)["instances"] for i in range(batch)]
    limit = torch.tensor([width, height, width, height]) * factor - 1
    boxes = torch.cat([x.gt_boxes.tensor for x in objects]).div(TARGET_STRIDE).long().minimum(limit)
    image = torch.arange(batch).repeat_interleave(len(objects[0]))
    label = torch.cat([x.gt_classes for x in objects])
    where = [x.to(device) for x in (boxes, image, label)]

    def loss(compute: Callable[..., tuple[Tensor, Tensor]]) -> None:
        total, _ = compute(scores, *where, factor, 0.07)
        torch.autograd.grad(total, scores)

    steps = (partial(loss, compute) for compute in (pixel_text_bce_definition, pixel_text_bce))
    yield KernelCase("pixel-text loss", *steps, floor_bytes=2 * scores.nbytes)


def bandwidth(device: torch.device, size: int = 1 << 28) -> float:
    """Bytes a second that a large copy reads and writes: the best of five."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        synchronize(device)
        start = perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(perf_counter() - start)
    return 2 * size / min(seconds)

"""Kernels with their definitions and inputs: for the benchmark, and for the tests."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..kernels import (
    anchor_focal_loss,
    anchor_focal_loss_reference,
    label_map_cross_entropy,
    label_map_cross_entropy_reference,
    pixel_text_bce,
    pixel_text_bce_reference,
    pixel_text_scores,
    pixel_text_scores_reference,
)

# Stride of the score map, and of a segmentor's logits; pixels of the loss per cell; boxes in an image.
STRIDE, LOGITS_STRIDE, FACTOR, BOXES = 32, 4, 8, 10
FINEST_STRIDE = 8  # of RetinaNet's pyramid
WIDTH, TAU, IGNORE_VALUE = 1024, 0.07, 255


@dataclass(frozen=True)
class Kernel:
    """A function, its definition with the same arguments and outputs, and the inputs to run both on.

    Attributes:
        make_inputs: takes batch, num_classes, image_size (height, width in pixels) and device. Tensors that
            need a gradient have ``requires_grad``.
    """

    function: Callable[..., tuple[torch.Tensor, ...]]
    definition: Callable[..., tuple[torch.Tensor, ...]]
    make_inputs: Callable[[int, int, tuple[int, int], torch.device], tuple]


def _scores_inputs(batch: int, num_classes: int, image_size: tuple[int, int], device: torch.device) -> tuple:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(batch, WIDTH, *(side // STRIDE for side in image_size), generator=generator)
    text = torch.randn(batch, num_classes, WIDTH, generator=generator)
    return dense.to(device).requires_grad_(), text.to(device).requires_grad_(), TAU


def _bce_inputs(batch: int, num_classes: int, image_size: tuple[int, int], device: torch.device) -> tuple:
    """Boxes like COCO's: the sides are log-normal around an eighth of the longer image side."""
    generator = torch.Generator().manual_seed(0)
    size = [side // STRIDE for side in image_size]
    scores = 2 * torch.rand(batch, num_classes, *size, generator=generator) - 1
    limit = torch.tensor([FACTOR * size[1], FACTOR * size[0]])
    count = batch * BOXES
    center = torch.rand(count, 2, generator=generator) * limit
    half = torch.exp(0.9 * torch.randn(count, 2, generator=generator)) * limit.max() / 16
    corners = torch.stack([center - half, center + half], dim=1).clamp(min=0)
    boxes = torch.minimum(corners, (limit - 1).float()).long().flatten(1)
    image = torch.arange(batch).repeat_interleave(BOXES)
    label = torch.randint(0, num_classes, (count,), generator=generator)
    scores = scores.to(device).requires_grad_()
    return scores, boxes.to(device), image.to(device), label.to(device), FACTOR, TAU


def _label_map_inputs(
    batch: int, num_classes: int, image_size: tuple[int, int], device: torch.device
) -> tuple:
    generator = torch.Generator().manual_seed(0)
    size = [side // LOGITS_STRIDE for side in image_size]
    logits = torch.randn(batch, num_classes, *size, generator=generator).to(device)
    labels = torch.randint(0, num_classes, (batch, *image_size), generator=generator)
    return logits.requires_grad_(), labels.to(device), IGNORE_VALUE


def _focal_inputs(batch: int, num_classes: int, image_size: tuple[int, int], device: torch.device) -> tuple:
    """Logits of nine anchors per cell of RetinaNet's finest level, and classes of 1 %."""
    generator = torch.Generator().manual_seed(0)
    anchors = 9 * (image_size[0] // FINEST_STRIDE) * (image_size[1] // FINEST_STRIDE)
    logits = torch.randn(batch, anchors, num_classes, generator=generator)
    labels = torch.randint(-1, 100 * num_classes, (batch, anchors), generator=generator)
    labels = labels.clamp(max=num_classes).to(device)
    return logits.to(device).requires_grad_(), labels, 0.25, 2.0


KERNELS = {
    "pixel-text scores": Kernel(pixel_text_scores, pixel_text_scores_reference, _scores_inputs),
    "pixel-text BCE": Kernel(pixel_text_bce, pixel_text_bce_reference, _bce_inputs),
    "label map cross-entropy": Kernel(
        label_map_cross_entropy, label_map_cross_entropy_reference, _label_map_inputs
    ),
    "focal loss": Kernel(anchor_focal_loss, anchor_focal_loss_reference, _focal_inputs),
}

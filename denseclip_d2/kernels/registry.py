from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .bce import pixel_text_bce, pixel_text_bce_definition
from .label_map import label_map_cross_entropy, label_map_cross_entropy_definition
from .score_map import pixel_text_scores, pixel_text_scores_definition

STRIDE, FACTOR, TAU = 32, 8, 0.07  # of the score map, from it to the loss's pixels, and its temperature
IGNORE_VALUE = 255


@dataclass(frozen=True)
class Kernel:
    """A function, its definition, and what to measure them on and against."""

    name: str
    function: Callable[..., tuple[Tensor, ...]]
    definition: Callable[..., tuple[Tensor, ...]]
    """Of the same arguments, with the same outputs."""
    make_inputs: Callable[..., tuple]
    """Of batch, num_classes, image_size (height, width in pixels), device, and optionally dtype and seed."""
    forward_bytes: Callable[..., int]
    """Of the inputs: the fewest bytes that a forward pass has to read and write."""
    backward_bytes: Callable[..., int]
    """Of the inputs: the same for a forward and a backward pass together."""


def _scores_inputs(batch, num_classes, image_size, device, dtype=torch.float32, seed=0, width=1024) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    size = [side // STRIDE for side in image_size]
    dense = torch.randn(batch, width, *size, generator=generator).to(device, dtype)
    text = torch.randn(batch, num_classes, width, generator=generator).to(device, dtype)
    return dense.requires_grad_(), text.requires_grad_(), TAU


def _scores_forward_bytes(dense: Tensor, text: Tensor, tau: float) -> int:
    return dense.nbytes + text.nbytes + 2 * _map_bytes(dense, text)


def _scores_backward_bytes(dense: Tensor, text: Tensor, tau: float) -> int:
    """The backward pass reads the inputs, s and two gradients, and writes the inputs' gradients."""
    backward = 2 * (dense.nbytes + text.nbytes) + 3 * _map_bytes(dense, text)
    return _scores_forward_bytes(dense, text, tau) + backward


def _map_bytes(dense: Tensor, text: Tensor) -> int:
    return dense.nbytes // dense.shape[1] * text.shape[1]


def _bce_inputs(
    batch, num_classes, image_size, device, dtype=torch.float32, seed=0, boxes_per_image=10
) -> tuple:
    """Boxes of COCO's kind: ten an image, their sides log-normal around an eighth of the longer one's."""
    generator = torch.Generator().manual_seed(seed)
    size = [side // STRIDE for side in image_size]
    scores = 2 * torch.rand(batch, num_classes, *size, generator=generator) - 1
    limit = torch.tensor([FACTOR * size[1], FACTOR * size[0]])
    count = batch * boxes_per_image
    center = torch.rand(count, 2, generator=generator) * limit
    half = torch.exp(0.9 * torch.randn(count, 2, generator=generator)) * limit.max() / 16
    corners = torch.stack([center - half, center + half], dim=1).clamp(min=0)
    boxes = torch.minimum(corners, (limit - 1).float()).long().flatten(1)
    image = torch.arange(batch).repeat_interleave(boxes_per_image)
    label = torch.randint(0, num_classes, (count,), generator=generator)
    scores = scores.to(device, dtype).requires_grad_()
    return scores, boxes.to(device), image.to(device), label.to(device), FACTOR, TAU


def _bce_forward_bytes(scores: Tensor, boxes: Tensor, image: Tensor, label: Tensor, *_) -> int:
    return scores.nbytes + boxes.nbytes + image.nbytes + label.nbytes


def _bce_backward_bytes(scores: Tensor, *others) -> int:
    return _bce_forward_bytes(scores, *others) + scores.nbytes


def _label_map_inputs(batch, num_classes, image_size, device, dtype=torch.float32, seed=0, stride=4) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    size = [side // stride for side in image_size]
    logits = torch.randn(batch, num_classes, *size, generator=generator).to(device, dtype)
    labels = torch.randint(0, num_classes, (batch, *image_size), generator=generator)
    return logits.requires_grad_(), labels.to(device), IGNORE_VALUE


def _label_map_forward_bytes(logits: Tensor, labels: Tensor, ignore_value: int) -> int:
    return logits.nbytes + labels.nbytes


def _label_map_backward_bytes(logits: Tensor, labels: Tensor, ignore_value: int) -> int:
    return _label_map_forward_bytes(logits, labels, ignore_value) + logits.nbytes


KERNELS = (
    Kernel(
        "pixel-text scores",
        pixel_text_scores,
        pixel_text_scores_definition,
        _scores_inputs,
        _scores_forward_bytes,
        _scores_backward_bytes,
    ),
    Kernel(
        "pixel-text BCE",
        pixel_text_bce,
        pixel_text_bce_definition,
        _bce_inputs,
        _bce_forward_bytes,
        _bce_backward_bytes,
    ),
    Kernel(
        "label map cross-entropy",
        label_map_cross_entropy,
        label_map_cross_entropy_definition,
        _label_map_inputs,
        _label_map_forward_bytes,
        _label_map_backward_bytes,
    ),
)

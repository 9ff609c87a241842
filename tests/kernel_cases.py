import torch
from torch import Tensor
from torch.testing import assert_close

from denseclip_d2.kernels import (
    label_map_cross_entropy,
    label_map_cross_entropy_reference,
    pixel_text_bce,
    pixel_text_bce_reference,
)

CASES = {  # (B, K, h, w), factor, boxes per image, largest side of a box in pixels of the enlarged map
    "random": ((2, 5, 6, 9), 8, (4, 7), 40),
    "odd": ((3, 3, 5, 7), 8, (1, 2, 3), 25),
    "one class": ((2, 1, 4, 4), 8, (3, 2), 20),
    "stride 16": ((2, 4, 6, 5), 4, (5, 1), 12),
    "stride 4": ((1, 3, 7, 10), 1, (8,), 7),
    "odd factor": ((2, 2, 4, 5), 3, (3, 2), 8),
    "an image without boxes": ((3, 4, 4, 6), 8, (0, 5, 0), 30),
    "no boxes": ((2, 4, 3, 3), 8, (0, 0), 1),
    "boxes under a pixel": ((2, 4, 3, 3), 8, (3, 3), 0),
    "one cell": ((1, 2, 1, 1), 8, (3,), 8),
    "everything": ((1, 2, 4, 3), 8, (30,), 32),
}
TAU = 0.07


def random_case(name: str, seed: int = 0, masks: bool = False, dtype=torch.float32, device="cpu"):
    """Return scores and the other arguments of ``pixel_text_bce``."""
    (batch, classes, height, width), factor, counts, longest = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    scores = (2 * torch.rand(batch, classes, height, width, generator=generator) - 1).to(dtype)
    count = sum(counts)
    size = torch.tensor([factor * width, factor * height])
    corner = (torch.rand(count, 2, generator=generator) * size).long()
    side = torch.randint(0, longest + 1, (count, 2), generator=generator)
    boxes = torch.cat([corner, torch.minimum(corner + side, size - 1)], dim=1)
    if masks:
        boxes = torch.rand(count, factor * height, factor * width, generator=generator) < 0.02
    image = torch.arange(batch).repeat_interleave(torch.tensor(counts))
    label = torch.randint(0, classes, (count,), generator=generator)
    scores, boxes, image, label = (x.to(device) for x in (scores, boxes, image, label))
    return scores, (boxes, image, label, factor, TAU)


def loss_and_gradient(function, scores, arguments):
    scores = scores.detach().requires_grad_()
    total, count = function(scores, *arguments)
    (3 * total).backward()
    return total.detach(), count, scores.grad


def assert_equals_the_definition(scores, arguments, grad_rtol=1e-4) -> Tensor:
    """Compare loss (1e-5) and gradient (1e-4) in float32. Return the number of terms of the loss."""
    total, count, grad = loss_and_gradient(pixel_text_bce, scores, arguments)
    expected, expected_count, expected_grad = loss_and_gradient(pixel_text_bce_reference, scores, arguments)
    assert total.dtype == torch.float32
    assert count == expected_count
    assert_close(total, expected, rtol=1e-5, atol=1e-5)
    assert grad.dtype == scores.dtype
    assert_close(grad, expected_grad, rtol=grad_rtol, atol=grad_rtol * float(expected_grad.abs().max()))
    return count


LABEL_MAPS = {  # (B, K, h, w), (H, W)
    "four times": ((2, 5, 6, 9), (24, 36)),
    "eight times": ((1, 20, 2, 3), (16, 24)),
    "three times": ((2, 3, 4, 1), (12, 3)),
    "one class": ((1, 1, 3, 3), (12, 12)),
    "not enlarged": ((2, 3, 4, 5), (4, 5)),
    "not by an integer": ((1, 3, 5, 7), (33, 50)),
    "one cell": ((2, 4, 1, 1), (16, 8)),
    "smaller": ((1, 3, 8, 8), (5, 4)),
}


def label_map_case(name: str, dtype=torch.float32, device="cpu"):
    """Return logits and a label map. A third of the label map is ignored."""
    shape, size = LABEL_MAPS[name]
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, shape[1], (shape[0], *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 1 / 3] = 255
    return (4 * torch.randn(shape, generator=generator)).to(device, dtype), labels.to(device)


def sum_and_gradient(function, logits, labels):
    logits = logits.detach().requires_grad_()
    (total,) = function(logits, labels, 255)
    (3 * total).backward()
    return total.detach(), logits.grad


def assert_cross_entropy_equals_its_definition(logits, labels, grad_rtol=1.3e-6):
    total, grad = sum_and_gradient(label_map_cross_entropy, logits, labels)
    expected, expected_grad = sum_and_gradient(label_map_cross_entropy_reference, logits, labels)
    assert total.dtype == torch.float32
    assert_close(total, expected)
    assert grad.dtype == logits.dtype
    assert_close(grad, expected_grad, rtol=grad_rtol, atol=1e-5)

import torch
import torch.nn.functional as F
from torch import Tensor

from .available import triton_runs_on
from .own_gradient import register_own_gradient
from .regions import dense_target


def pixel_text_bce_definition(
    scores: Tensor, shapes: Tensor, image: Tensor, label: Tensor, factor: int, tau: float
) -> tuple[Tensor, Tensor]:
    """:func:`pixel_text_bce` written out: every tensor of its three steps is (B, K, f * h, f * w)."""
    batch, num_classes, height, width = scores.shape
    size = (factor * height, factor * width)
    logits = F.interpolate(scores.float() / tau, size, mode="bilinear", align_corners=False)
    target = dense_target(shapes, image, label, batch, num_classes, size)
    mask = target.any(dim=1, keepdim=True)  # (B, 1, H, W)
    loss = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    return (loss * mask).sum(), mask.sum() * num_classes


def pixel_text_bce(
    scores: Tensor,
    shapes: Tensor,
    image: Tensor,
    label: Tensor,
    factor: int,
    tau: float,
    kernels: bool = True,
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of an enlarged score map at the pixels that any class covers, summed.

    In float32 whatever the precision of ``scores``. With ``kernels``, a Triton kernel computes it on CUDA and
    blocks of pixels do on CPUs, so that nothing of the size of the enlarged map is ever allocated; elsewhere,
    and without, the definition does.

    Args:
        scores: (B, K, h, w) score map; its logits are scores / ``tau``, bilinearly enlarged ``factor`` times
            (align_corners=False) to (H, W).
        shapes: (N, 4) int64 boxes of x1, y1, x2, y2 in pixels of the enlarged map, covering `[y1:y2, x1:x2]`,
            each from 0 to W - 1 or H - 1; or (N, H, W) bool masks.
        image, label: (N,) int64, the image in the batch and the class of each.
        factor: f, an integer.
        tau: temperature.
        kernels: False for the definition.
    Returns: the sum over images, classes and covered pixels, and the number of its terms (int64). Scalars.
    """
    if not kernels or not (scores.device.type == "cpu" or triton_runs_on(scores.device)):
        return pixel_text_bce_definition(scores, shapes, image, label, factor, tau)
    return pixel_text_bce_op(scores, shapes, image, label, factor, tau)[:2]


@torch.library.custom_op("denseclip_d2::pixel_text_bce", mutates_args=(), device_types="cpu")
def pixel_text_bce_op(
    scores: Tensor, shapes: Tensor, image: Tensor, label: Tensor, factor: int, tau: float
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`pixel_text_bce` with the sum's gradient to ``scores``, (B, K, h, w) float32."""
    from .bce_blocks import pixel_text_bce_in_blocks

    return pixel_text_bce_in_blocks(scores, shapes, image, label, factor, tau)


@pixel_text_bce_op.register_kernel("cuda")
def _(
    scores: Tensor, shapes: Tensor, image: Tensor, label: Tensor, factor: int, tau: float
) -> tuple[Tensor, Tensor, Tensor]:
    from .bce_triton import pixel_text_bce_triton  # Triton is not everywhere

    return pixel_text_bce_triton(scores, shapes, image, label, factor, tau)


@pixel_text_bce_op.register_fake
def _(scores: Tensor, shapes: Tensor, image: Tensor, label: Tensor, factor: int, tau: float):
    return (
        scores.new_empty((), dtype=torch.float32),
        scores.new_empty((), dtype=torch.int64),
        torch.empty(scores.shape, dtype=torch.float32, device=scores.device),
    )


register_own_gradient(pixel_text_bce_op)

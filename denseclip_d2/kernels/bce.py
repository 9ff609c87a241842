import torch
import torch.nn.functional as F
from torch import Tensor

from .available import triton_runs_on
from .dense_target import dense_target, inside
from .precomputed_grad import register_precomputed_grad
from .tiles import enlarge, enlarging, near_cells, split_tiles


def pixel_text_bce_reference(
    scores: Tensor, shapes: Tensor, image: Tensor, label: Tensor, factor: int, tau: float
) -> tuple[Tensor, Tensor]:
    """Compute :func:`pixel_text_bce` step by step. Every tensor is (B, K, f * h, f * w)."""
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
    """Sum the binary cross-entropy of an enlarged score map over the pixels that any class covers.

    The sum is float32, whatever the precision of ``scores``. With ``kernels``, CUDA runs a Triton kernel, and
    CPUs compute tiles. Neither allocates anything of the size of the enlarged map. Other devices use
    the definition.

    Args:
        scores: (B, K, h, w) score map. The logits are scores / ``tau``, bilinearly enlarged ``factor`` times
            (align_corners=False) to (H, W).
        shapes: (N, 4) int64 boxes of x1, y1, x2, y2 in pixels of the enlarged map, which cover
            `[y1:y2, x1:x2]`, each from 0 to W - 1 or H - 1; or (N, H, W) bool masks.
        image, label: (N,) int64, the image in the batch and the class of each shape.
        factor: f, an integer.
        tau: temperature.
        kernels: False selects the definition.
    Returns: the sum over images, classes and covered pixels, and its number of terms (int64). Scalars.
    """
    if not kernels or not (scores.device.type == "cpu" or triton_runs_on(scores.device)):
        return pixel_text_bce_reference(scores, shapes, image, label, factor, tau)
    return pixel_text_bce_op(scores, shapes, image, label, factor, tau)[:2]


@torch.library.custom_op("denseclip_d2::pixel_text_bce", mutates_args=(), device_types="cpu")
def pixel_text_bce_op(
    scores: Tensor, shapes: Tensor, image: Tensor, label: Tensor, factor: int, tau: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`pixel_text_bce` and the sum's gradient to ``scores``, (B, K, h, w) float32.

    Each tile adds to the loss and to the gradient, so that no tile is kept.
    """
    batch, num_classes, height, width = scores.shape
    total = torch.zeros((), dtype=torch.float64)
    count = torch.zeros((), dtype=torch.int64)
    grad = torch.zeros(batch, height, width, num_classes)
    down, across = enlarging(height, factor * height), enlarging(width, factor * width) / tau
    with torch.autocast("cpu", enabled=False):
        for i in range(batch):
            own = image == i
            own_shapes, own_label = shapes[own], label[own]
            cells = scores[i].detach().float().permute(1, 2, 0).contiguous()
            for rows, columns in split_tiles(len(down), len(across), max(num_classes, len(own_label))):
                covering = inside(own_shapes, rows, columns)  # (M, n, m)
                y, x = covering.any(dim=0).any(dim=1), covering.any(dim=0).any(dim=0)
                if not y.any():
                    continue
                covering = covering[:, y][:, :, x]
                near, weights = near_cells(down[rows[y]], across[columns[x]])
                logits = enlarge(cells[near], *weights)
                part, terms = _masked_bce(logits, covering, own_label)
                total += part
                count += terms
                grad[i][near] += enlarge(logits, *(matrix.t() for matrix in weights))
    return total.float(), count, grad.permute(0, 3, 1, 2).contiguous()


def _masked_bce(logits: Tensor, covering: Tensor, label: Tensor) -> tuple[Tensor, int]:
    """Sum the cross-entropy over covered pixels, and replace the logits by its gradient.

    Args:
        logits: (n, W, K), overwritten.
        covering: (M, n, W) bool, which pixels each shape covers.
        label: (M,), the classes of the shapes.
    Returns: the sum, and its number of terms.
    """
    num_classes = logits.shape[2]
    covered = covering.any(dim=0).flatten().float()
    owner, pixel = covering.flatten(1).nonzero().unbind(1)
    positive = pixel * num_classes + label[owner]
    # BCE(x, t) = softplus(-x) where t = 1, else softplus(x): change the sign there, and back in the gradient.
    flat = logits.view(-1)
    flat[positive] = -flat[positive]
    pixels = logits.view(-1, num_classes)
    total = (covered @ softplus(pixels)).sum(dtype=torch.float64)
    pixels.sigmoid_().mul_(covered[:, None])
    flat[positive] = -flat[positive]
    return total, int(covered.sum()) * num_classes


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), as exact as PyTorch's. On CPUs, log1p is several times slower than atanh."""
    small = x.abs().neg_().exp_()
    return small.div_(small + 2).atanh_().mul_(2).add_(x.relu())


@pixel_text_bce_op.register_kernel("cuda")
def _(
    scores: Tensor, shapes: Tensor, image: Tensor, label: Tensor, factor: int, tau: float
) -> tuple[Tensor, Tensor, Tensor]:
    from .bce_triton import pixel_text_bce_triton  # Triton is not always installed

    return pixel_text_bce_triton(scores, shapes, image, label, factor, tau)


@pixel_text_bce_op.register_fake
def _(scores: Tensor, shapes: Tensor, image: Tensor, label: Tensor, factor: int, tau: float):
    return (
        scores.new_empty((), dtype=torch.float32),
        scores.new_empty((), dtype=torch.int64),
        torch.empty(scores.shape, dtype=torch.float32, device=scores.device),
    )


register_precomputed_grad(pixel_text_bce_op)

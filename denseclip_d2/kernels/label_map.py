import torch
import torch.nn.functional as F
from torch import Tensor

from .available import triton_runs_on
from .own_gradient import register_own_gradient

CHUNK = 1 << 19
"""Numbers in the largest tensor made for a band of pixels: it should fit in a core's cache."""


def label_map_cross_entropy_definition(logits: Tensor, labels: Tensor, ignore_value: int) -> tuple[Tensor]:
    """:func:`label_map_cross_entropy` written out: the enlarged logits are (B, K, H, W)."""
    logits = F.interpolate(logits.float(), labels.shape[1:], mode="bilinear", align_corners=False)
    return (F.cross_entropy(logits, labels, ignore_index=ignore_value, reduction="sum"),)


def label_map_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_value: int, kernels: bool = True
) -> tuple[Tensor]:
    """Cross-entropy of bilinearly enlarged logits with a label map, summed over labeled pixels.

    In float32 whatever the precision of ``logits``. With ``kernels``, on CPUs a band of rows at a time, on
    CUDA by a Triton kernel if the map is enlarged by an integer, so that nothing of the size of the
    enlarged logits is ever allocated; elsewhere, and without, by definition.

    Args:
        logits: (B, K, h, w), enlarged to (H, W) with align_corners=False.
        labels: (B, H, W) int64 class ids.
        ignore_value: the id that stands for no class.
        kernels: False for the definition.
    Returns: a scalar, alone in a tuple.
    """
    if not kernels or not (logits.device.type == "cpu" or _has_kernel(logits, labels)):
        return label_map_cross_entropy_definition(logits, labels, ignore_value)
    return (label_map_cross_entropy_op(logits, labels, ignore_value)[0],)


def _has_kernel(logits: Tensor, labels: Tensor) -> bool:
    factor = labels.shape[1] // logits.shape[2]
    enlarged = (factor * logits.shape[2], factor * logits.shape[3])
    return triton_runs_on(logits.device) and enlarged == labels.shape[1:]


@torch.library.custom_op("denseclip_d2::label_map_cross_entropy", mutates_args=(), device_types="cpu")
def label_map_cross_entropy_op(logits: Tensor, labels: Tensor, ignore_value: int) -> tuple[Tensor, Tensor]:
    """:func:`label_map_cross_entropy` with the sum's gradient to ``logits``, (B, K, h, w) float32."""
    (batch, num_classes, height, width), size = logits.shape, labels.shape[1:]
    total = torch.zeros((), dtype=torch.float64)
    grad = torch.zeros(batch, height, width, num_classes)
    down, across = _enlarging(height, size[0]), _enlarging(width, size[1])
    band = max(1, CHUNK // (size[1] * num_classes))
    with torch.autocast("cpu", enabled=False):
        for cells, own_labels, own_grad in zip(logits.detach(), labels, grad, strict=True):
            cells = cells.float().permute(1, 2, 0).contiguous()
            for rows, row_labels in zip(down.split(band), own_labels.split(band), strict=True):
                touched = rows.any(dim=0).nonzero().flatten()
                near = slice(int(touched[0]), int(touched[-1]) + 1)
                weights = rows[:, near]
                enlarged = (weights @ (across @ cells[near]).flatten(1)).unflatten(1, (-1, num_classes))
                part, part_grad = _cross_entropy(enlarged, row_labels, ignore_value)
                total += part
                part_grad = (weights.t() @ part_grad.flatten(1)).unflatten(1, (-1, num_classes))
                own_grad[near] += across.t() @ part_grad
    return total.float(), grad.permute(0, 3, 1, 2).contiguous()


@label_map_cross_entropy_op.register_kernel("cuda")
def _(logits: Tensor, labels: Tensor, ignore_value: int) -> tuple[Tensor, Tensor]:
    from .label_map_triton import label_map_cross_entropy_triton  # Triton is not everywhere

    return label_map_cross_entropy_triton(logits, labels, ignore_value)


@label_map_cross_entropy_op.register_fake
def _(logits: Tensor, labels: Tensor, ignore_value: int):
    grad = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    return logits.new_empty((), dtype=torch.float32), grad


register_own_gradient(label_map_cross_entropy_op)


def _enlarging(length: int, size: int) -> Tensor:
    """The matrix, (size, length), of linear interpolation, of which bilinear is one for each side."""
    return F.interpolate(torch.eye(length)[None], size, mode="linear", align_corners=False)[0].t()


def _cross_entropy(logits: Tensor, labels: Tensor, ignore_value: int) -> tuple[Tensor, Tensor]:
    """The sum over pixels that have a label, and its gradient.

    Args:
        logits: (n, W, K).
        labels: (n, W).
    """
    labeled = (labels != ignore_value)[..., None]
    index = labels[..., None].where(labeled, 0)
    log_probability = logits.log_softmax(dim=-1)
    total = -(log_probability.gather(-1, index) * labeled).sum(dtype=torch.float64)
    grad = log_probability.exp_()
    grad.scatter_add_(-1, index, -torch.ones(index.shape))
    return total, grad.mul_(labeled)

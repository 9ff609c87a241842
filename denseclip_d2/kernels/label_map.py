import torch
import torch.nn.functional as F
from torch import Tensor

from .available import triton_runs_on
from .precomputed_grad import register_precomputed_grad
from .tiles import enlarge, enlarging, near_cells, split_tiles


def label_map_cross_entropy_reference(logits: Tensor, labels: Tensor, ignore_value: int) -> tuple[Tensor]:
    """Compute :func:`label_map_cross_entropy` step by step. The enlarged logits are (B, K, H, W)."""
    logits = F.interpolate(logits.float(), labels.shape[1:], mode="bilinear", align_corners=False)
    return (F.cross_entropy(logits, labels, ignore_index=ignore_value, reduction="sum"),)


def label_map_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_value: int, kernels: bool = True
) -> tuple[Tensor]:
    """Sum the cross-entropy of bilinearly enlarged logits with a label map over labeled pixels.

    The sum is float32, whatever the precision of ``logits``. With ``kernels``, CPUs compute tiles,
    and CUDA runs a Triton kernel if the enlargement is by an integer. Neither allocates anything of the size
    of the enlarged logits. Other cases use the definition.

    Args:
        logits: (B, K, h, w), enlarged to (H, W) with align_corners=False.
        labels: (B, H, W) int64 class ids.
        ignore_value: the id of pixels without a class.
        kernels: False selects the definition.
    Returns: a scalar, alone in a tuple.
    """
    if not kernels or not (logits.device.type == "cpu" or _has_kernel(logits, labels)):
        return label_map_cross_entropy_reference(logits, labels, ignore_value)
    return (label_map_cross_entropy_op(logits, labels, ignore_value)[0],)


def _has_kernel(logits: Tensor, labels: Tensor) -> bool:
    factor = labels.shape[1] // logits.shape[2]
    enlarged = (factor * logits.shape[2], factor * logits.shape[3])
    return triton_runs_on(logits.device) and enlarged == labels.shape[1:]


@torch.library.custom_op("denseclip_d2::label_map_cross_entropy", mutates_args=(), device_types="cpu")
def label_map_cross_entropy_op(logits: Tensor, labels: Tensor, ignore_value: int) -> tuple[Tensor, Tensor]:
    """Compute :func:`label_map_cross_entropy` and the sum's gradient to ``logits``, (B, K, h, w) float32."""
    (batch, num_classes, height, width), size = logits.shape, labels.shape[1:]
    total = torch.zeros((), dtype=torch.float64)
    grad = torch.zeros(batch, height, width, num_classes)
    down, across = enlarging(height, size[0]), enlarging(width, size[1])
    with torch.autocast("cpu", enabled=False):
        for cells, image_labels, own_grad in zip(logits.detach(), labels, grad, strict=True):
            cells = cells.float().permute(1, 2, 0).contiguous()
            for y, x in split_tiles(len(down), len(across), num_classes):
                near, weights = near_cells(down[y], across[x])
                own_labels = image_labels[y][:, x]
                part, part_grad = _cross_entropy(enlarge(cells[near], *weights), own_labels, ignore_value)
                total += part
                own_grad[near] += enlarge(part_grad, *(matrix.t() for matrix in weights))
    return total.float(), grad.permute(0, 3, 1, 2).contiguous()


@label_map_cross_entropy_op.register_kernel("cuda")
def _(logits: Tensor, labels: Tensor, ignore_value: int) -> tuple[Tensor, Tensor]:
    from .label_map_triton import label_map_cross_entropy_triton  # Triton is not always installed

    return label_map_cross_entropy_triton(logits, labels, ignore_value)


@label_map_cross_entropy_op.register_fake
def _(logits: Tensor, labels: Tensor, ignore_value: int):
    grad = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    return logits.new_empty((), dtype=torch.float32), grad


register_precomputed_grad(label_map_cross_entropy_op)


def _cross_entropy(logits: Tensor, labels: Tensor, ignore_value: int) -> tuple[Tensor, Tensor]:
    """Return the sum over pixels with a label, and its gradient.

    Args:
        logits: (n, W, K), overwritten.
        labels: (n, W).
    """
    labeled = (labels != ignore_value)[..., None]
    index = labels[..., None].where(labeled, 0)
    largest = logits.amax(dim=-1, keepdim=True)
    chosen = logits.gather(-1, index) - largest
    powers = logits.sub_(largest).exp_()  # once for both results: exp is most of the time
    sums = powers.sum(dim=-1, keepdim=True)
    total = ((sums.log() - chosen) * labeled).sum(dtype=torch.float64)
    grad = powers.mul_(labeled / sums).scatter_add_(-1, index, -labeled.float())
    return total, grad

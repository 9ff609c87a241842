import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_CLASSES = 32


@triton.jit
def _bce_in_block(
    scores, shapes, first, label, sums, counts, grads,
    num_classes, height, width, stride_b, stride_k, stride_y, stride_x, scale,
    FACTOR: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr, MASKS: tl.constexpr,
):  # fmt: skip
    """Some classes of a block: the FACTOR x FACTOR pixels between the same four cells, or beyond a border."""
    block = tl.program_id(0).to(tl.int64)
    row, column = block // (width + 1) % (height + 1), block % (width + 1)
    image = block // ((height + 1) * (width + 1))
    k = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)

    pixel = tl.arange(0, PIXELS)
    down, right = pixel // FACTOR, pixel % FACTOR
    y = (row - 1) * FACTOR + FACTOR // 2 + down
    x = (column - 1) * FACTOR + FACTOR // 2 + right
    real = (pixel < FACTOR * FACTOR) & (y >= 0) & (y < height * FACTOR) & (x >= 0) & (x < width * FACTOR)
    begin, end = tl.load(first + image), tl.load(first + image + 1)
    covered, target = _target(
        shapes, label, begin, end, y, x, real, k, height * FACTOR, width * FACTOR, PIXELS, CLASSES, MASKS
    )
    count = tl.sum(covered, 0)
    if tl.program_id(1) == 0:
        tl.store(counts + block, count)

    if count > 0:  # sums and gradients are zero already
        # Beyond a border there is one cell to read: the other gets no weight, and so no gradient.
        weight_y = tl.where(row == 0, 1.0, tl.where(row == height, 0.0, _weight(down, FACTOR)))
        weight_x = tl.where(column == 0, 1.0, tl.where(column == width, 0.0, _weight(right, FACTOR)))
        above, below = tl.maximum(row - 1, 0), tl.minimum(row, height - 1)
        before, after = tl.maximum(column - 1, 0), tl.minimum(column, width - 1)
        known = k < num_classes
        cell = scores + image * stride_b + k.to(tl.int64) * stride_k
        above_before = ((1 - weight_y) * (1 - weight_x))[:, None]
        above_after = ((1 - weight_y) * weight_x)[:, None]
        below_before = (weight_y * (1 - weight_x))[:, None]
        below_after = (weight_y * weight_x)[:, None]
        logits = above_before * _load(cell + above * stride_y + before * stride_x, known)
        logits += above_after * _load(cell + above * stride_y + after * stride_x, known)
        logits += below_before * _load(cell + below * stride_y + before * stride_x, known)
        logits += below_after * _load(cell + below * stride_y + after * stride_x, known)

        # BCE(x, t) = softplus(-x) where t = 1, else softplus(x).
        sign = 1.0 - 2.0 * target.to(tl.float32)
        logits = logits * scale * sign
        small = tl.exp(-tl.abs(logits))
        larger = 1.0 + small
        log1p = tl.log(larger) + (small - (larger - 1.0)) / larger  # with what rounding took from `larger`
        counted = (covered[:, None] > 0) & known[None, :]
        loss = tl.where(counted, tl.maximum(logits, 0.0) + log1p, 0.0)
        tl.store(sums + block * tl.num_programs(1) + tl.program_id(1), tl.sum(tl.sum(loss, 1), 0))
        sigmoid = tl.where(logits >= 0, 1.0, small) / larger
        grad = tl.where(counted, sigmoid * sign * scale, 0.0)
        place = grads + block * 4 * num_classes + k
        tl.store(place, tl.sum(above_before * grad, 0), mask=known)
        tl.store(place + num_classes, tl.sum(above_after * grad, 0), mask=known)
        tl.store(place + 2 * num_classes, tl.sum(below_before * grad, 0), mask=known)
        tl.store(place + 3 * num_classes, tl.sum(below_after * grad, 0), mask=known)


@triton.jit
def _target(
    shapes, label, begin, end, y, x, real, k, height, width,
    PIXELS: tl.constexpr, CLASSES: tl.constexpr, MASKS: tl.constexpr,
):  # fmt: skip
    """Which pixels an image's boxes or masks cover, (PIXELS,), and with which classes, (PIXELS, CLASSES)."""
    covered = tl.zeros((PIXELS,), tl.int32)
    target = tl.zeros((PIXELS, CLASSES), tl.int32)
    for n in range(begin, end):
        if MASKS:
            inside = real & (tl.load(shapes + (n * height + y) * width + x, mask=real, other=0) != 0)
        else:
            x1, y1 = tl.load(shapes + 4 * n), tl.load(shapes + 4 * n + 1)
            x2, y2 = tl.load(shapes + 4 * n + 2), tl.load(shapes + 4 * n + 3)
            inside = real & (y >= y1) & (y < y2) & (x >= x1) & (x < x2)
        inside = inside.to(tl.int32)
        covered = covered | inside
        target = target | (inside[:, None] * (tl.load(label + n) == k).to(tl.int32)[None, :])
    return covered, target


@triton.jit
def _weight(pixel, FACTOR: tl.constexpr):
    """Distance of a block's pixel from the first of its two cells, in cells."""
    return (pixel.to(tl.float32) + FACTOR // 2 + 0.5) / FACTOR - 0.5


@triton.jit
def _load(pointer, known):
    return tl.load(pointer, mask=known, other=0.0).to(tl.float32)[None, :]


def pixel_text_bce_triton(
    scores: Tensor, shapes: Tensor, image: Tensor, label: Tensor, factor: int, tau: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The masked binary cross-entropy and its gradient, by one kernel over blocks of pixels.

    Each program writes the gradient of its pixels to the four cells around them, and each cell then sums what
    the four blocks around it have for it: no atomics, and the same bits at every call.

    Args, Returns: see :func:`~denseclip_d2.kernels.bce.pixel_text_bce_op`.
    """
    batch, num_classes, height, width = scores.shape
    # Where each image's shapes begin; never known to the host, which does not wait for it.
    first = torch.searchsorted(image, torch.arange(batch + 1, device=image.device), out_int32=True)
    classes = min(BLOCK_CLASSES, triton.next_power_of_2(num_classes))
    blocks = batch * (height + 1) * (width + 1)
    grid = (blocks, triton.cdiv(num_classes, classes))
    sums = torch.zeros(grid, device=scores.device)
    counts = torch.empty(blocks, dtype=torch.int32, device=scores.device)
    grads = torch.zeros(batch, height + 1, width + 1, 4, num_classes, device=scores.device)
    masks = shapes.dim() == 3
    with torch.cuda.device_of(scores):
        _bce_in_block[grid](
            scores,
            shapes.contiguous().view(torch.uint8) if masks else shapes.contiguous(),
            first,
            label.contiguous(),
            sums,
            counts,
            grads,
            num_classes,
            height,
            width,
            *scores.stride(),
            1 / tau,
            FACTOR=factor,
            PIXELS=triton.next_power_of_2(factor**2),
            CLASSES=classes,
            MASKS=masks,
        )
    above_before, above_after, below_before, below_after = grads.unbind(3)
    grad = above_before[:, 1:, 1:] + above_after[:, 1:, :-1] + below_before[:, :-1, 1:]
    grad = (grad + below_after[:, :-1, :-1]).permute(0, 3, 1, 2).contiguous()
    return sums.sum(), counts.sum() * num_classes, grad

import torch
import triton
import triton.language as tl
from torch import Tensor

# Sides of a tile: tensor cores want 16 at least, and the shared memory of small GPUs bounds them.
CLASSES, CLASSES_BACKWARD, PIXELS, CHANNELS = 128, 64, 32, 32
SMALLEST = tl.constexpr(1e-12)  # of a norm, as in torch.nn.functional.normalize


@triton.jit
def _forward(
    dense, text, scores, logits, dense_scale, text_scale,
    num_classes, num_pixels, num_channels, dense_b, dense_c, dense_p, text_b, text_k, text_c, per_tau,
    CLASSES: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Scores of a tile of pixels and classes; the norms are summed up along the way."""
    image = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    k = tl.program_id(2) * CLASSES + tl.arange(0, CLASSES)
    real_p, real_k = p < num_pixels, k < num_classes
    scores_sum = tl.zeros((CLASSES, PIXELS), tl.float32)
    dense_sum = tl.zeros((PIXELS,), tl.float32)
    text_sum = tl.zeros((CLASSES,), tl.float32)
    for start in range(0, num_channels, CHANNELS):
        c = start + tl.arange(0, CHANNELS)
        real_c = c < num_channels
        place = dense + image * dense_b + c[:, None] * dense_c + p[None, :] * dense_p
        v = tl.load(place, mask=real_c[:, None] & real_p[None, :], other=0.0)
        place = text + image * text_b + k[:, None] * text_k + c[None, :] * text_c
        t = tl.load(place, mask=real_k[:, None] & real_c[None, :], other=0.0)
        scores_sum = tl.dot(t, v, scores_sum, input_precision="ieee")
        v, t = v.to(tl.float32), t.to(tl.float32)
        dense_sum += tl.sum(v * v, 0)
        text_sum += tl.sum(t * t, 1)
    per_dense = 1.0 / tl.maximum(tl.sqrt(dense_sum), SMALLEST)
    per_text = 1.0 / tl.maximum(tl.sqrt(text_sum), SMALLEST)
    score = scores_sum * per_text[:, None] * per_dense[None, :]
    place = (image * num_classes + k[:, None]) * num_pixels + p[None, :]
    real = real_k[:, None] & real_p[None, :]
    tl.store(scores + place, score.to(scores.dtype.element_ty), mask=real)
    tl.store(logits + place, (score * per_tau).to(logits.dtype.element_ty), mask=real)
    # Programs of the same pixels or classes write the same numbers.
    tl.store(dense_scale + image * num_pixels + p, per_dense, mask=real_p)
    tl.store(text_scale + image * num_classes + k, per_text, mask=real_k)


@triton.jit
def _grad_of_scores(
    scores, grad_scores, grad_logits, image, k, p, num_classes, num_pixels, per_tau
):  # fmt: skip
    """For a tile, the gradient to the scores, and the same times the scores: (classes, pixels) each."""
    place = (image * num_classes + k[:, None]) * num_pixels + p[None, :]
    real = (k < num_classes)[:, None] & (p < num_pixels)[None, :]
    grad = tl.load(grad_logits + place, mask=real, other=0.0).to(tl.float32) * per_tau
    grad += tl.load(grad_scores + place, mask=real, other=0.0).to(tl.float32)
    return grad, grad * tl.load(scores + place, mask=real, other=0.0).to(tl.float32)


@triton.jit
def _backward_dense(
    dense, text, scores, grad_scores, grad_logits, dense_scale, text_scale, grad_dense,
    num_classes, num_pixels, num_channels, dense_b, dense_c, dense_p, text_b, text_k, text_c, per_tau,
    CLASSES: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradient to a tile of pixels and channels: of v / |v|, what is across v, over |v|."""
    image = tl.program_id(0).to(tl.int64)
    p = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    real_p, real_c = p < num_pixels, c < num_channels
    total = tl.zeros((CHANNELS, PIXELS), tl.float32)
    along = tl.zeros((PIXELS,), tl.float32)
    for start in range(0, num_classes, CLASSES):
        k = start + tl.arange(0, CLASSES)
        real_k = k < num_classes
        grad, grad_score = _grad_of_scores(
            scores, grad_scores, grad_logits, image, k, p, num_classes, num_pixels, per_tau
        )
        along += tl.sum(grad_score, 0)
        grad *= tl.load(text_scale + image * num_classes + k, mask=real_k, other=0.0)[:, None]
        place = text + image * text_b + k[None, :] * text_k + c[:, None] * text_c
        t = tl.load(place, mask=real_c[:, None] & real_k[None, :], other=0.0)
        total = tl.dot(t, grad.to(t.dtype), total, input_precision="ieee")
    place = dense + image * dense_b + c[:, None] * dense_c + p[None, :] * dense_p
    real = real_c[:, None] & real_p[None, :]
    v = tl.load(place, mask=real, other=0.0).to(tl.float32)
    scale = tl.load(dense_scale + image * num_pixels + p, mask=real_p, other=0.0)
    total = (total - v * (scale * along)[None, :]) * scale[None, :]
    place = grad_dense + (image * num_channels + c[:, None]) * num_pixels + p[None, :]
    tl.store(place, total.to(grad_dense.dtype.element_ty), mask=real)


@triton.jit
def _backward_text(
    dense, text, scores, grad_scores, grad_logits, dense_scale, text_scale, grad_text,
    num_classes, num_pixels, num_channels, dense_b, dense_c, dense_p, text_b, text_k, text_c, per_tau,
    CLASSES: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradient that one image gives to a tile of classes and channels."""
    image = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)
    c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    real_k, real_c = k < num_classes, c < num_channels
    total = tl.zeros((CLASSES, CHANNELS), tl.float32)
    along = tl.zeros((CLASSES,), tl.float32)
    for start in range(0, num_pixels, PIXELS):
        p = start + tl.arange(0, PIXELS)
        real_p = p < num_pixels
        grad, grad_score = _grad_of_scores(
            scores, grad_scores, grad_logits, image, k, p, num_classes, num_pixels, per_tau
        )
        along += tl.sum(grad_score, 1)
        grad *= tl.load(dense_scale + image * num_pixels + p, mask=real_p, other=0.0)[None, :]
        place = dense + image * dense_b + c[None, :] * dense_c + p[:, None] * dense_p
        v = tl.load(place, mask=real_p[:, None] & real_c[None, :], other=0.0)
        total = tl.dot(grad.to(v.dtype), v, total, input_precision="ieee")
    place = text + image * text_b + k[:, None] * text_k + c[None, :] * text_c
    real = real_k[:, None] & real_c[None, :]
    t = tl.load(place, mask=real, other=0.0).to(tl.float32)
    scale = tl.load(text_scale + image * num_classes + k, mask=real_k, other=0.0)
    total = (total - t * (scale * along)[:, None]) * scale[:, None]
    place = grad_text + (image * num_classes + k[:, None]) * num_channels + c[None, :]
    tl.store(place, total, mask=real)


def pixel_text_scores_triton(
    dense: Tensor, text: Tensor, tau: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Args, Returns: see :func:`~denseclip_d2.kernels.score_map.pixel_text_scores_op`."""
    batch, _, height, width = dense.shape
    num_classes = text.shape[1]
    scores = dense.new_empty(batch, num_classes, height, width)
    logits = torch.empty_like(scores)
    dense_scale = dense.new_empty(batch, height * width, dtype=torch.float32)
    text_scale = dense.new_empty(batch, num_classes, dtype=torch.float32)
    sizes, tile = _sizes(dense, text, CLASSES)
    grid = (batch, triton.cdiv(height * width, PIXELS), triton.cdiv(num_classes, tile["CLASSES"]))
    with torch.cuda.device_of(dense):
        _forward[grid](
            dense.flatten(2), text, scores, logits, dense_scale, text_scale, *sizes, 1 / tau, **tile
        )
    return scores, logits, dense_scale, text_scale


def pixel_text_scores_backward_triton(
    dense: Tensor,
    text: Tensor,
    scores: Tensor,
    dense_scale: Tensor,
    text_scale: Tensor,
    grad_scores: Tensor,
    grad_logits: Tensor,
    tau: float,
) -> tuple[Tensor, Tensor]:
    """Args, Returns: see :func:`~denseclip_d2.kernels.score_map.pixel_text_scores_backward_op`."""
    batch, channels, height, width = dense.shape
    num_classes = text.shape[1]
    grad_dense = dense.new_empty(dense.shape)
    grad_text = dense.new_empty(batch, num_classes, channels, dtype=torch.float32)
    sizes, tile = _sizes(dense, text, CLASSES_BACKWARD)
    grads = grad_scores.contiguous(), grad_logits.contiguous()
    inputs = dense.flatten(2), text, scores, *grads, dense_scale, text_scale
    columns = triton.cdiv(channels, CHANNELS)
    with torch.cuda.device_of(dense):
        grid = (batch, triton.cdiv(height * width, PIXELS), columns)
        _backward_dense[grid](*inputs, grad_dense, *sizes, 1 / tau, **tile)
        grid = (batch, triton.cdiv(num_classes, tile["CLASSES"]), columns)
        _backward_text[grid](*inputs, grad_text, *sizes, 1 / tau, **tile)
    grad_text = grad_text.sum(0, keepdim=True) if len(text) == 1 else grad_text
    return grad_dense, grad_text.to(text.dtype)


def _sizes(dense: Tensor, text: Tensor, most_classes: int) -> tuple[tuple[int, ...], dict[str, int]]:
    """Sizes and strides as the kernels take them, and the sides of a tile."""
    pixels = dense.flatten(2)
    sizes = (text.shape[1], pixels.shape[2], pixels.shape[1], *pixels.stride())
    # One set of embeddings for all images: the same rows are read for each.
    strides = (0 if len(text) == 1 else text.stride(0), text.stride(1), text.stride(2))
    classes = min(most_classes, max(16, triton.next_power_of_2(text.shape[1])))
    return (*sizes, *strides), {"CLASSES": classes, "PIXELS": PIXELS, "CHANNELS": CHANNELS}

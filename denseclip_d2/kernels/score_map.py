import torch
import torch.nn.functional as F
from torch import Tensor

from .available import triton_runs_on


def pixel_text_scores_definition(dense: Tensor, text: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """:func:`pixel_text_scores` written out."""
    text = F.normalize(text, dim=-1).expand(dense.shape[0], -1, -1)  # len() would be a constant of a trace
    scores = torch.einsum("bchw,bkc->bkhw", F.normalize(dense, dim=1), text)
    return scores, scores / tau


def pixel_text_scores(dense: Tensor, text: Tensor, tau: float, kernels: bool = True) -> tuple[Tensor, Tensor]:
    """Cosine similarity of every pixel with every class (paper, eq. 1), and the same over the temperature.

    With ``kernels``, a Triton kernel computes both on CUDA in one pass over ``dense`` for up to 128 classes,
    without normalised copies; elsewhere, and without, the definition does.

    Args:
        dense: (B, C, h, w) dense visual embedding.
        text: (B or 1, K, C) text embeddings.
        tau: temperature.
        kernels: False for the definition.
    Returns: s, in [-1, 1], and s / tau; (B, K, h, w) each.
    """
    if not kernels or not triton_runs_on(dense.device):
        return pixel_text_scores_definition(dense, text, tau)
    if torch.is_autocast_enabled(dense.device.type):
        dtype = torch.get_autocast_dtype(dense.device.type)
        dense, text = dense.to(dtype), text.to(dtype)
    return pixel_text_scores_op(dense, text, tau)[:2]


@torch.library.custom_op("denseclip_d2::pixel_text_scores", mutates_args=(), device_types="cuda")
def pixel_text_scores_op(dense: Tensor, text: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`pixel_text_scores` and, for its gradient, one over the norms: (B, h * w) and (B, K) float32."""
    from .score_map_triton import pixel_text_scores_triton  # Triton is not everywhere

    return pixel_text_scores_triton(dense, text, tau)


@pixel_text_scores_op.register_fake
def _(dense: Tensor, text: Tensor, tau: float):
    batch, _, height, width = dense.shape
    scores = dense.new_empty(batch, text.shape[1], height, width)
    dense_scale = dense.new_empty(batch, height * width, dtype=torch.float32)
    return (
        scores,
        torch.empty_like(scores),
        dense_scale,
        dense.new_empty(batch, text.shape[1], dtype=torch.float32),
    )


@torch.library.custom_op("denseclip_d2::pixel_text_scores_backward", mutates_args=(), device_types="cuda")
def pixel_text_scores_backward_op(
    dense: Tensor,
    text: Tensor,
    scores: Tensor,
    dense_scale: Tensor,
    text_scale: Tensor,
    grad_scores: Tensor,
    grad_logits: Tensor,
    tau: float,
) -> tuple[Tensor, Tensor]:
    """Gradients to ``dense`` and ``text``, of their shapes, contiguous, without atomics."""
    from .score_map_triton import pixel_text_scores_backward_triton

    return pixel_text_scores_backward_triton(
        dense, text, scores, dense_scale, text_scale, grad_scores, grad_logits, tau
    )


@pixel_text_scores_backward_op.register_fake
def _(dense: Tensor, text: Tensor, *_):
    return dense.new_empty(dense.shape), text.new_empty(text.shape)


def _setup_context(ctx, inputs, output) -> None:
    dense, text, ctx.tau = inputs
    scores, _, dense_scale, text_scale = output
    ctx.save_for_backward(dense, text, scores, dense_scale, text_scale)


def _backward(ctx, grad_scores, grad_logits, *grad_scales):
    return *pixel_text_scores_backward_op(*ctx.saved_tensors, grad_scores, grad_logits, ctx.tau), None


pixel_text_scores_op.register_autograd(_backward, setup_context=_setup_context)

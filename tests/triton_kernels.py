"""Tests of the Triton kernels, run by test_kernels.py: on a GPU, or else under TRITON_INTERPRET=1."""

from functools import partial

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import CASES, TAU, assert_equals_the_definition, loss_and_gradient, random_case
from torch.testing import assert_close
from triton.runtime import interpreter

from denseclip_d2.kernels import (
    pixel_text_bce,
    pixel_text_scores,
    pixel_text_scores_definition,
    score_map,
)
from denseclip_d2.kernels.bce import pixel_text_bce_op
from denseclip_d2.kernels.bce_triton import pixel_text_bce_triton
from denseclip_d2.kernels.score_map import pixel_text_scores_backward_op, pixel_text_scores_op
from denseclip_d2.kernels.score_map_triton import (
    pixel_text_scores_backward_triton,
    pixel_text_scores_triton,
)

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True, scope="module")
def triton_runs():
    """Under the interpreter, the kernels stand where CPUs have others."""
    if not INTERPRETED:
        yield
        return
    pixel_text_bce_op.register_kernel("cpu")(pixel_text_bce_triton)
    pixel_text_scores_op.register_kernel("cpu")(pixel_text_scores_triton)
    pixel_text_scores_backward_op.register_kernel("cpu")(pixel_text_scores_backward_triton)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_map, "triton_runs_on", lambda device: True)
        # The interpreter keeps bfloat16 as its bits, and would multiply these.
        dot = interpreter.InterpreterBuilder.create_dot

        def widened_dot(builder, a, b, *others):
            return dot(builder, _widened(a), _widened(b), *others)

        patch.setattr(interpreter.InterpreterBuilder, "create_dot", widened_dot)
        yield


def _widened(handle):
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


@pytest.mark.parametrize("name", CASES)
def test_the_loss_equals_its_definition(name):
    assert_equals_the_definition(*random_case(name, device=DEVICE))


@pytest.mark.parametrize("name", ["one class", "odd factor", "no boxes"])
def test_the_loss_of_masks_equals_its_definition(name):
    assert_equals_the_definition(*random_case(name, masks=True, device=DEVICE))


@pytest.mark.parametrize("dtype", HALF)
def test_the_loss_of_half_precision_scores_equals_its_definition(dtype):
    """Computed in float32; the gradient is rounded once."""
    case = random_case("odd", dtype=dtype, device=DEVICE)
    assert_equals_the_definition(*case, grad_rtol=torch.finfo(dtype).eps)


def test_the_loss_takes_any_layout_and_more_classes_than_a_program_does():
    scores, (boxes, image, label, *rest) = random_case("odd", device=DEVICE)
    scores = torch.randn(3, 5, 7, 70, device=DEVICE).permute(0, 3, 1, 2)  # channels-last
    scores = torch.stack([scores, scores], dim=-1)[..., 0]
    assert_equals_the_definition(scores, (boxes, image, 30 * label, *rest))


def test_the_loss_and_its_gradient_are_the_same_bits_every_time():
    case = random_case("everything", device=DEVICE)
    for first, second in zip(*(loss_and_gradient(pixel_text_bce, *case) for _ in range(2)), strict=True):
        assert torch.equal(first, second)


SHAPES = {  # B, sets of text embeddings, K, C, h, w
    "random": (2, 2, 20, 40, 3, 7),
    "one text, classes and pixels and channels over several tiles": (2, 1, 150, 70, 5, 9),
    "one of each": (1, 1, 1, 1, 1, 1),
    "one class": (3, 3, 1, 33, 4, 4),
}


def random_embeddings(name: str, dtype=torch.float32) -> tuple:
    batch, texts, classes, channels, height, width = SHAPES[name]
    dense = torch.randn(batch, channels, height, width, device=DEVICE)
    return dense.to(dtype), torch.randn(texts, classes, channels, device=DEVICE).to(dtype)


def scores_and_gradients(function, dense, text):
    dense, text = dense.detach().requires_grad_(), text.detach().requires_grad_()
    outputs = function(dense, text, TAU)
    weights = torch.linspace(-1, 1, outputs[0].numel(), device=DEVICE).view(outputs[0].shape)
    (outputs[0] * weights + outputs[1] * weights.flip(0, 1, 2, 3)).float().sum().backward()
    return *(x.detach() for x in outputs), dense.grad, text.grad


def assert_scores_equal_the_definition(dense, text, rtol, grad_rtol):
    """To a part of the greatest number of each, or of 1."""
    actual = scores_and_gradients(pixel_text_scores, dense, text)
    expected = scores_and_gradients(pixel_text_scores_definition, dense.float(), text.float())
    for x, y, tolerance in zip(actual, expected, (rtol, rtol, grad_rtol, grad_rtol), strict=True):
        assert x.dtype == dense.dtype
        assert_close(x.float(), y, rtol=0, atol=tolerance * max(1.0, y.abs().max().item()))


@pytest.mark.parametrize("name", SHAPES)
def test_the_scores_equal_their_definition(name):
    assert_scores_equal_the_definition(*random_embeddings(name), rtol=1e-5, grad_rtol=1e-4)


@pytest.mark.parametrize("dtype", HALF)
def test_the_scores_in_half_precision_are_near_their_definition_in_float32(dtype):
    eps = torch.finfo(dtype).eps
    assert_scores_equal_the_definition(*random_embeddings("random", dtype), rtol=eps, grad_rtol=4 * eps)


def test_the_scores_take_any_layout():
    dense, text = random_embeddings("random")
    dense = dense.contiguous(memory_format=torch.channels_last)
    text = text.transpose(1, 2).contiguous().transpose(1, 2)
    assert_scores_equal_the_definition(dense, text, rtol=1e-5, grad_rtol=1e-4)
    cropped = torch.randn(2, 40, 5, 9, device=DEVICE)[:, :, 1:4, 2:]
    assert_scores_equal_the_definition(cropped, text, rtol=1e-5, grad_rtol=1e-4)


def test_embeddings_of_zeros_score_zero():
    dense, text = random_embeddings("one class")
    scores, logits = pixel_text_scores(torch.zeros_like(dense), text, TAU)
    assert not scores.any()
    assert not logits.any()


def test_under_autocast_the_scores_have_its_precision():
    dense, text = random_embeddings("random")
    with torch.autocast(DEVICE, torch.bfloat16):
        scores, logits = pixel_text_scores(dense.bfloat16(), text, TAU)
    assert scores.dtype == logits.dtype == torch.bfloat16
    assert_close(scores.float(), pixel_text_scores_definition(dense, text, TAU)[0], rtol=0, atol=1e-2)


def test_the_operators_are_proper():
    scores, arguments = random_case("one class", device=DEVICE)
    torch.library.opcheck(pixel_text_bce_op, (scores.requires_grad_(), *arguments))
    dense, text = (x.requires_grad_() for x in random_embeddings("random"))
    torch.library.opcheck(pixel_text_scores_op, (dense, text, TAU))


def test_both_compile_whole():
    compiled = partial(torch.compile, fullgraph=True, backend="aot_eager")
    case = random_case("one class", device=DEVICE)
    actual, expected = (loss_and_gradient(f, *case) for f in (compiled(pixel_text_bce), pixel_text_bce))
    assert_close(actual, expected)
    case = random_embeddings("random")
    actual, expected = (
        scores_and_gradients(f, *case) for f in (compiled(pixel_text_scores), pixel_text_scores)
    )
    assert_close(actual, expected)

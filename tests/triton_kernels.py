"""Tests of the Triton kernels. test_kernels.py runs them with TRITON_INTERPRET=1, test_gpu.py on a GPU."""

from functools import partial

import pytest
import torch
import triton
from kernel_cases import (
    CASES,
    LABEL_MAPS,
    assert_cross_entropy_equals_its_definition,
    assert_equals_the_definition,
    label_map_case,
    loss_and_gradient,
    random_case,
    sum_and_gradient,
)
from torch.testing import assert_close

from denseclip_d2.kernels import label_map_cross_entropy, label_map_triton, pixel_text_bce
from denseclip_d2.kernels.bce import pixel_text_bce_op
from denseclip_d2.kernels.bce_triton import pixel_text_bce_triton
from denseclip_d2.kernels.label_map import label_map_cross_entropy_op
from denseclip_d2.kernels.label_map_triton import label_map_cross_entropy_triton

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True, scope="module")
def triton_runs():
    """In the interpreter, the Triton kernels replace those for CPUs."""
    if not INTERPRETED:
        yield
        return
    pixel_text_bce_op.register_kernel("cpu")(pixel_text_bce_triton)
    label_map_cross_entropy_op.register_kernel("cpu")(label_map_cross_entropy_triton)
    yield


@pytest.mark.parametrize("name", CASES)
def test_the_loss_equals_its_definition(name):
    assert_equals_the_definition(*random_case(name, device=DEVICE))


@pytest.mark.parametrize("name", ["one class", "odd factor", "no boxes"])
def test_the_loss_of_masks_equals_its_definition(name):
    assert_equals_the_definition(*random_case(name, masks=True, device=DEVICE))


@pytest.mark.parametrize("dtype", HALF)
def test_the_loss_of_half_precision_scores_equals_its_definition(dtype):
    """The loss is computed in float32. The gradient is rounded once."""
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


INTEGER = [name for name in LABEL_MAPS if name not in ("not by an integer", "one cell", "smaller")]


@pytest.mark.parametrize("tile", [label_map_triton.TILE, 256])  # all classes at once, and in parts
@pytest.mark.parametrize("name", INTEGER)
def test_the_cross_entropy_equals_its_definition(name, tile, monkeypatch):
    monkeypatch.setattr(label_map_triton, "TILE", tile)
    assert_cross_entropy_equals_its_definition(*label_map_case(name, device=DEVICE))


@pytest.mark.parametrize("dtype", HALF)
def test_the_cross_entropy_of_half_precision_logits_equals_its_definition(dtype):
    case = label_map_case("three times", dtype, DEVICE)
    assert_cross_entropy_equals_its_definition(*case, grad_rtol=torch.finfo(dtype).eps)


def test_a_label_map_without_labels_costs_nothing():
    logits, labels = label_map_case("three times", device=DEVICE)
    total, grad = sum_and_gradient(label_map_cross_entropy, logits, labels.fill_(255))
    assert total == 0 and not grad.any()


def test_the_operators_are_proper():
    scores, arguments = random_case("one cell", device=DEVICE)
    torch.library.opcheck(pixel_text_bce_op, (scores.requires_grad_(), *arguments))
    logits, labels = label_map_case("three times", device=DEVICE)
    torch.library.opcheck(label_map_cross_entropy_op, (logits.requires_grad_(), labels, 255))


def test_both_compile_whole():
    compiled = partial(torch.compile, fullgraph=True, backend="aot_eager")
    case = random_case("one cell", device=DEVICE)
    actual, expected = (loss_and_gradient(f, *case) for f in (compiled(pixel_text_bce), pixel_text_bce))
    assert_close(actual, expected)
    case = label_map_case("three times", device=DEVICE)
    actual, expected = (
        sum_and_gradient(f, *case) for f in (compiled(label_map_cross_entropy), label_map_cross_entropy)
    )
    assert_close(actual, expected)

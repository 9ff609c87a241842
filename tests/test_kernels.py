import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.structures import BitMasks, Boxes
from kernel_cases import (
    CASES,
    LABEL_MAPS,
    TAU,
    assert_cross_entropy_equals_its_definition,
    assert_equals_the_definition,
    label_map_case,
    loss_and_gradient,
    random_case,
    sum_and_gradient,
)
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from denseclip_d2.benchmark.kernels import KERNELS
from denseclip_d2.benchmark.measure import peak_memory
from denseclip_d2.guidance import pixel_text_loss
from denseclip_d2.kernels import (
    anchor_focal_loss,
    anchor_focal_loss_reference,
    focal_loss,
    label_map_cross_entropy,
    label_map_cross_entropy_reference,
    pixel_text_bce,
    pixel_text_bce_reference,
    pixel_text_scores,
    pixel_text_scores_reference,
    tiles,
)
from denseclip_d2.kernels.available import HAS_TRITON
from denseclip_d2.kernels.bce import pixel_text_bce_op
from denseclip_d2.kernels.focal_loss import anchor_focal_loss_op
from denseclip_d2.kernels.label_map import label_map_cross_entropy_op


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_in_tiles_equals_its_definition(name, masks, monkeypatch):
    empty = name in ("no boxes", "boxes under a pixel") and not (masks and name == "boxes under a pixel")
    for seed, chunk in enumerate((tiles.CHUNK, 1000)):  # all at once, and in many parts
        monkeypatch.setattr(tiles, "CHUNK", chunk)
        count = assert_equals_the_definition(*random_case(name, seed, masks))
        assert (count == 0) == empty


@pytest.mark.parametrize("layout", ["non-contiguous", "channels-last", "expanded"])
def test_the_loss_takes_any_layout(layout):
    scores, arguments = random_case("random")
    scores = {
        "non-contiguous": lambda: torch.stack([scores, scores], dim=-1)[..., 0],
        "channels-last": lambda: scores.contiguous(memory_format=torch.channels_last),
        "expanded": lambda: scores[:1].expand_as(scores),
    }[layout]()
    assert_equals_the_definition(scores, arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_half_precision_scores_is_computed_in_float32(dtype):
    scores, arguments = random_case("random", dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        total, count = pixel_text_bce(scores, *arguments)
    expected, _ = pixel_text_bce_reference(scores.float(), *arguments)
    assert total.dtype == torch.float32
    assert_close(total, expected, rtol=1e-5, atol=1e-5)
    # The gradient is rounded once, to the precision of the scores.
    assert_equals_the_definition(scores, arguments, grad_rtol=torch.finfo(dtype).eps)


def test_extreme_scores_give_what_the_definition_gives():
    scores, arguments = random_case("everything")
    assert_equals_the_definition(scores.sign() * 10, arguments)  # logits of 140


class LargestAllocation(TorchDispatchMode):
    """Record the largest number of elements in the storage of any tensor that operators return."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.numbers = max(self.numbers, size)
        return result


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_nothing_of_the_enlarged_size_is_allocated(masks):
    batch, classes, height, width = shape = (2, 80, 13, 19)
    enlarged = batch * classes * 8 * height * 8 * width
    boxes = torch.tensor([[0.0, 0.0, 400.0, 390.0], [100.0, 50.0, 608.0, 416.0]])
    shapes = [Boxes(boxes)] * 2
    if masks:
        bitmaps = torch.zeros(2, 416, 608)
        bitmaps[0, :390, :400] = bitmaps[1, 50:, 100:] = 1
        shapes = [BitMasks(bitmaps)] * 2
    for kernels in (True, False):
        scores = torch.rand(shape, requires_grad=True)
        with LargestAllocation() as largest:
            pixel_text_loss(scores, shapes, [torch.tensor([3, 70])] * 2, 32, TAU, kernels).backward()
        assert (largest.numbers < enlarged / 4) == kernels
        assert (largest.numbers >= enlarged) == (not kernels)


def test_the_loss_is_a_proper_operator():
    scores, arguments = random_case("odd")
    torch.library.opcheck(pixel_text_bce_op, (scores.requires_grad_(), *arguments))


def test_the_loss_compiles_whole():
    scores, arguments = random_case("random")
    compiled = torch.compile(pixel_text_bce, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(
        loss_and_gradient(compiled, scores, arguments),
        loss_and_gradient(pixel_text_bce, scores, arguments),
        strict=True,
    ):
        assert_close(actual, expected)


SCORES = {  # B, sets of text embeddings, K, C, h, w
    "random": (2, 2, 20, 40, 3, 7),
    "one text": (2, 1, 15, 70, 5, 9),
    "one of each": (1, 1, 1, 1, 1, 1),
    "one class": (3, 3, 1, 33, 4, 4),
}


def random_embeddings(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    batch, texts, classes, channels, height, width = SCORES[name]
    return torch.randn(batch, channels, height, width), torch.randn(texts, classes, channels)


def scores_and_gradients(function, dense, text):
    dense, text = dense.detach().requires_grad_(), text.detach().requires_grad_()
    outputs = function(dense, text, TAU)
    weights = torch.linspace(-1, 1, outputs[0].numel()).view(outputs[0].shape)
    (outputs[0] * weights + outputs[1] * weights.flip(0, 1, 2, 3)).sum().backward()
    return *(x.detach() for x in outputs), dense.grad, text.grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", SCORES)
def test_the_scores_equal_their_definition(name, layout):
    dense, text = random_embeddings(name)
    dense = dense.contiguous(memory_format=layout)
    assert_close(
        scores_and_gradients(pixel_text_scores, dense, text),
        scores_and_gradients(pixel_text_scores_reference, dense, text),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_scores_keep_no_normalized_copy_of_the_pixels():
    dense, text = torch.randn(2, 256, 8, 8), torch.randn(2, 4, 256)

    def saved(function) -> int:
        kept = {}

        def keep(x: torch.Tensor) -> torch.Tensor:
            kept[x.data_ptr()] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            function(dense.requires_grad_(), text.requires_grad_(), TAU)
        return sum(x.numel() for place, x in kept.items() if place != dense.data_ptr())

    assert saved(pixel_text_scores) < dense.numel() / 4
    assert saved(pixel_text_scores_reference) >= dense.numel()


def test_embeddings_of_zeros_score_zero():
    dense, text = random_embeddings("one class")
    scores, _, grad, _ = scores_and_gradients(pixel_text_scores, torch.zeros_like(dense), text)
    assert not scores.any()
    assert grad.isfinite().all()


def test_under_autocast_the_scores_have_its_precision():
    dense, text = random_embeddings("random")
    with torch.autocast("cpu", torch.bfloat16):
        scores, logits = pixel_text_scores(dense.bfloat16(), text, TAU)
    assert scores.dtype == logits.dtype == torch.bfloat16
    assert_close(scores.float(), pixel_text_scores_reference(dense, text, TAU)[0], rtol=0, atol=1e-2)


def test_the_score_map_compiles_whole():
    dense, text = torch.randn(2, 8, 3, 5), torch.randn(1, 4, 8)
    compiled = torch.compile(pixel_text_scores, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(dense, text, TAU), pixel_text_scores(dense, text, TAU), strict=True):
        assert_close(actual, expected)


def anchors(labels, classes: int, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.tensor(labels)
    return scale * torch.randn(*labels.shape, classes), labels


ANCHORS = {
    "random": anchors([[0, 3, -1, 5, 5], [5, 5, -1, 2, 5]], 5),
    "extreme logits": anchors([[0, 3, -1, 5, 5], [5, 5, -1, 2, 5]], 5, 60.0),
    "no objects": anchors([[5, 5, 5]], 5),
    "nothing counts": anchors([[-1, -1]], 5),
    "one class": anchors([[0, 1, 0, -1]], 1),
    "no anchors": anchors([[]], 4),
}


def focal_loss_and_gradient(function, logits, labels, *weights):
    logits = logits.detach().clone().requires_grad_()
    (total,) = function(logits, labels.long(), *weights)
    (3 * total).backward()
    return total.detach(), logits.grad


@pytest.mark.parametrize("weights", [(0.25, 2.0), (-1, 2.0), (0.5, 0.0), (0.25, 1.5)])
@pytest.mark.parametrize("case", ANCHORS)
def test_the_focal_loss_in_chunks_equals_fvcores(case, weights, monkeypatch):
    for chunk in (focal_loss.CHUNK["cpu"], 10):  # all at once, and in chunks of two anchors
        monkeypatch.setitem(focal_loss.CHUNK, "cpu", chunk)
        functions = (anchor_focal_loss, anchor_focal_loss_reference)
        assert_close(*(focal_loss_and_gradient(x, *ANCHORS[case], *weights) for x in functions))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_focal_loss_of_half_precision_logits_is_computed_in_float32(dtype):
    logits, labels = ANCHORS["random"][0].to(dtype), ANCHORS["random"][1]
    total, grad = focal_loss_and_gradient(anchor_focal_loss, logits, labels, 0.25, 2.0)
    expected = focal_loss_and_gradient(anchor_focal_loss_reference, logits.float(), labels, 0.25, 2.0)
    assert_close(total, expected[0])
    assert_close(grad, expected[1].to(dtype))


def test_the_focal_loss_is_a_proper_operator():
    logits, labels = ANCHORS["random"]
    torch.library.opcheck(anchor_focal_loss_op, (logits.clone().requires_grad_(), labels, 0.25, 2.0))


def test_the_focal_loss_allocates_its_gradient_and_chunks_alone():
    logits, labels = torch.randn(2, 20000, 30), torch.full((2, 20000), 30)
    peaks = [
        peak_memory(partial(focal_loss_and_gradient, x, logits, labels, 0.25, 2.0), logits.device)
        for x in (anchor_focal_loss, anchor_focal_loss_reference)
    ]
    # The input's copy, the gradient, and the gradient that the backward pass scales; by fvcore nine of them.
    assert peaks[0] < 4.5 * logits.nbytes < 9 * logits.nbytes < peaks[1]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_their_definitions_on_the_benchmarks_inputs(name):
    """The outputs, and the gradients of every input that has one."""
    kernel = KERNELS[name]
    arguments = kernel.make_inputs(2, 7, (96, 160), torch.device("cpu"))
    results = []
    for function in (kernel.function, kernel.definition):
        outputs = function(*arguments)
        leaves = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
        results.append((outputs, torch.autograd.grad(sum(x.sum() for x in outputs), leaves)))
    assert_close(*results, rtol=1e-4, atol=1e-4)


def test_kernels_import_without_triton():
    code = "import sys; sys.modules['triton'] = None; import denseclip_d2.kernels"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_triton_kernels():
    """In Triton's interpreter, which must be set before the import. test_gpu.py runs the same on a GPU."""
    cases = Path(__file__).with_name("triton_kernels.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


COMPILED = {  # kernel: module, pointers of the tested precision, other arguments, constants
    "_bce_in_block": (
        "bce_triton",
        ["scores"],
        {"shapes": "*i64", "first": "*i32", "label": "*i64", "counts": "*i32"}
        | {"sums": "*fp32", "corners": "*fp32", "scale": "fp32"},
        {"FACTOR": 8, "PIXELS": 64, "CLASSES": 16, "MASKS": False},
    ),
    "_cross_entropy_in_block": (
        "label_map_triton",
        ["logits"],
        {"labels": "*i64", "sums": "*fp32", "corners": "*fp32"},
        {"FACTOR": 4, "PIXELS": 16, "CLASSES": 64},
    ),
}


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", COMPILED)
def test_triton_kernels_compile_for_gpus(name, precision, capability):
    """Compile to machine code without a GPU, within the shared memory of smaller GPUs (99 KiB)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, pointers, others, constants = COMPILED[name]
    kernel = getattr(importlib.import_module(f"denseclip_d2.kernels.{module}"), name)
    kinds = dict.fromkeys(pointers, f"*{precision}") | others | dict.fromkeys(constants, "constexpr")
    signature = {argument: kinds.get(argument, "i32") for argument in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    options = {"num_warps": getattr(sys.modules[kernel.__module__], "WARPS", 4)}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 99 * 1024


@pytest.mark.parametrize("name", LABEL_MAPS)
def test_the_cross_entropy_in_tiles_equals_its_definition(name, monkeypatch):
    for chunk in (tiles.CHUNK, 500):  # all at once, and in small tiles
        monkeypatch.setattr(tiles, "CHUNK", chunk)
        assert_cross_entropy_equals_its_definition(*label_map_case(name))


def test_the_cross_entropy_of_half_precision_logits_is_computed_in_float32():
    logits, labels = label_map_case("four times", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        total, grad = sum_and_gradient(label_map_cross_entropy, logits, labels)
    expected, expected_grad = sum_and_gradient(label_map_cross_entropy_reference, logits.float(), labels)
    assert_close((total, grad), (expected, expected_grad.bfloat16()))


def test_a_label_map_without_labels_costs_nothing():
    logits, labels = label_map_case("four times")
    total, grad = sum_and_gradient(label_map_cross_entropy, logits, labels.fill_(255))
    assert total == 0 and not grad.any()


def test_nothing_of_the_enlarged_logits_size_is_allocated(monkeypatch):
    monkeypatch.setattr(tiles, "CHUNK", 1 << 14)
    logits, labels = torch.randn(2, 30, 16, 16), torch.randint(0, 30, (2, 128, 128))
    for function in (label_map_cross_entropy, label_map_cross_entropy_reference):
        with LargestAllocation() as largest:
            sum_and_gradient(function, logits, labels)
        assert (largest.numbers < 30 * labels.numel() / 4) == (function is label_map_cross_entropy)


def test_the_cross_entropy_is_a_proper_operator():
    logits, labels = label_map_case("not by an integer")
    torch.library.opcheck(label_map_cross_entropy_op, (logits.requires_grad_(), labels, 255))

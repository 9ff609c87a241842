import pytest
import torch
from detectron2.structures import BitMasks, Boxes
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from denseclip_d2.guidance import pixel_text_loss
from denseclip_d2.kernels import pixel_text_bce, pixel_text_bce_cpu, pixel_text_bce_definition
from denseclip_d2.kernels.pixel_text_bce import pixel_text_bce_op

CASES = {  # (B, K, h, w), factor, boxes an image, greatest side of a box in pixels of the enlarged map
    "random": ((2, 5, 6, 9), 8, (4, 7), 40),
    "odd": ((3, 3, 5, 7), 8, (1, 2, 3), 25),
    "one class": ((2, 1, 4, 4), 8, (3, 2), 20),
    "stride 16": ((2, 4, 6, 5), 4, (5, 1), 12),
    "stride 4": ((1, 3, 24, 20), 1, (4,), 9),
    "odd factor": ((2, 2, 4, 5), 3, (3, 2), 8),
    "an image without boxes": ((3, 4, 4, 6), 8, (0, 5, 0), 30),
    "no boxes": ((2, 4, 3, 3), 8, (0, 0), 1),
    "boxes under a pixel": ((2, 4, 3, 3), 8, (3, 3), 0),
    "one cell": ((1, 2, 1, 1), 8, (3,), 8),
    "everything": ((1, 2, 4, 3), 8, (30,), 32),
}
TAU = 0.07


def random_case(name: str, seed: int = 0, masks: bool = False, dtype=torch.float32):
    """Scores and the other arguments of ``pixel_text_bce``."""
    (batch, classes, height, width), factor, counts, longest = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    scores = (2 * torch.rand(batch, classes, height, width, generator=generator) - 1).to(dtype)
    count = sum(counts)
    size = torch.tensor([factor * width, factor * height])
    corner = (torch.rand(count, 2, generator=generator) * size).long()
    side = torch.randint(0, longest + 1, (count, 2), generator=generator)
    boxes = torch.cat([corner, torch.minimum(corner + side, size - 1)], dim=1)
    if masks:
        boxes = torch.rand(count, factor * height, factor * width, generator=generator) < 0.02
    image = torch.arange(batch).repeat_interleave(torch.tensor(counts))
    label = torch.randint(0, classes, (count,), generator=generator)
    return scores, (boxes, image, label, factor, TAU)


def loss_and_gradient(function, scores, arguments):
    scores = scores.detach().requires_grad_()
    total, count = function(scores, *arguments)
    (3 * total).backward()
    return total.detach(), count, scores.grad


def assert_equals_the_definition(scores, arguments, atol=1e-5, grad_rtol=1e-4):
    total, count, grad = loss_and_gradient(pixel_text_bce, scores, arguments)
    expected, expected_count, expected_grad = loss_and_gradient(pixel_text_bce_definition, scores, arguments)
    assert total.dtype == torch.float32
    assert count == expected_count
    assert_close(total, expected, rtol=1e-5, atol=1e-5)
    assert grad.dtype == scores.dtype
    assert_close(grad, expected_grad, rtol=grad_rtol, atol=grad_rtol * float(expected_grad.abs().max()))
    return count


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("name", CASES)
def test_the_loss_in_blocks_equals_its_definition(name, masks, monkeypatch):
    empty = name in ("no boxes", "boxes under a pixel") and not (masks and name == "boxes under a pixel")
    for seed, chunk in enumerate((pixel_text_bce_cpu.CHUNK, 1000)):  # all at once, and in many parts
        monkeypatch.setattr(pixel_text_bce_cpu, "CHUNK", chunk)
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
    expected, _ = pixel_text_bce_definition(scores.float(), *arguments)
    assert total.dtype == torch.float32
    assert_close(total, expected, rtol=1e-5, atol=1e-5)
    # The gradient is rounded once, to the scores' precision.
    assert_equals_the_definition(scores, arguments, grad_rtol=torch.finfo(dtype).eps)


def test_extreme_scores_give_what_the_definition_gives():
    scores, arguments = random_case("everything")
    assert_equals_the_definition(scores.sign() * 10, arguments)  # logits of 140


class LargestAllocation(TorchDispatchMode):
    """Remembers the most numbers in one tensor's storage among all that operators return."""

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

"""Inference runs other operators than training, with the same outputs."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_resnet_backbone
from detectron2.structures import Instances
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from denseclip_d2 import Predictor, model_zoo
from denseclip_d2.builder import build_model, fuse_layers
from denseclip_d2.clip_models import get_clip_architecture
from denseclip_d2.config import load_config
from denseclip_d2.data.image_io import to_bgr
from denseclip_d2.shapes.scene import draw_scene
from denseclip_d2.visual import CLIPResNet

ZOO = [f"Shapes/denseclip_{name}_tiny.yaml" for name in ("retinanet", "mask_rcnn", "semantic_fpn")]


def detectron2_resnet(norm: str) -> nn.Module:
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.RESNETS.NORM", norm, "MODEL.RESNETS.DEPTH", 18])
    cfg.merge_from_list(["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.BACKBONE.FREEZE_AT", 0])
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


def clip_resnet(norm: str, **arguments) -> nn.Module:
    tiny = CLIPResNet.arguments_of(get_clip_architecture("RN-shapes-quickgelu"))
    return CLIPResNet(**tiny, norm=norm, **arguments)


def sequence(norm: str) -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.GELU()]
    layers += [nn.ConvTranspose2d(8, 4, 2, stride=2), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("make", [clip_resnet, detectron2_resnet, sequence])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_fused_norms_change_no_number(make, norm):
    torch.manual_seed(0)
    model = make(norm).eval()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm | FrozenBatchNorm2d)]
    for module in norms:
        for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
            tensor.uniform_(0.5, 1.5)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        before = model(image)
        fuse_layers(model)
        after = model(image)
    assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert norms and not any(isinstance(m, _BatchNorm | FrozenBatchNorm2d) for m in model.modules())


def test_a_dilated_res5_and_the_projections_of_a_pool_are_fused_as_well():
    model = clip_resnet("BN", res5_dilation=2, dense="value").eval()
    nn.init.normal_(model.attnpool.v_proj.bias)
    nn.init.normal_(model.attnpool.c_proj.bias)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = model(image)
        fuse_layers(model)
        assert_close(model(image), before, atol=1e-4, rtol=1e-4)
    assert model.attnpool.value_proj is not None


def test_norms_that_learn_are_not_fused():
    with pytest.raises(AssertionError, match="still learns"):
        fuse_layers(clip_resnet("BN"))


def outputs_of(name: str, image: np.ndarray, **keys) -> tuple[Predictor, dict]:
    cfg = model_zoo.get_config(name, trained=True)
    cfg.merge_from_list([x for key, value in keys.items() for x in (f"TEST.{key}", value)])
    predictor = Predictor(cfg)
    return predictor, predictor(image)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Return an image of four objects, BGR."""
    rng = np.random.default_rng(3)
    return to_bgr(draw_scene(rng, 128, 160, max_objects=4)[1])


@pytest.mark.parametrize("name", ZOO)
def test_prediction_is_fast_by_default_with_the_same_outputs(name, image):
    predictor, fast = outputs_of(name, image)
    assert not any(isinstance(m, _BatchNorm) for m in predictor.model.backbone.visual.modules())
    plain_predictor, plain = outputs_of(name, image, OPTIMIZE_FOR_INFERENCE=False)
    assert any(isinstance(m, _BatchNorm) for m in plain_predictor.model.backbone.visual.modules())
    assert_outputs_are_near(fast, plain, boxes=0.01, scores=1e-4)


@pytest.mark.parametrize("name", ZOO)
def test_bfloat16_is_a_key(name, image):
    """Outputs differ by about the precision of bfloat16."""
    coarse, exact = (outputs_of(name, image, PRECISION=p)[1] for p in ("bfloat16", "float32"))
    with pytest.raises(AssertionError):
        assert_outputs_are_near(coarse, exact, boxes=1e-5, scores=1e-6)
    assert_outputs_are_near(coarse, exact, boxes=3, scores=0.1)


def assert_outputs_are_near(found: dict, expected: dict, *, boxes: float, scores: float) -> None:
    assert found.keys() == expected.keys()
    if "sem_seg" in found:
        labels = [x["sem_seg"].argmax(dim=0) for x in (found, expected)]
        assert (labels[0] != labels[1]).float().mean() < scores
        assert_close(found["sem_seg"].float(), expected["sem_seg"], atol=100 * boxes, rtol=0)
        return
    sure, also = (confident(x["instances"]) for x in (found, expected))
    assert len(also) > 0
    assert_close(sure.pred_classes, also.pred_classes)
    assert_close(sure.pred_boxes.tensor.float(), also.pred_boxes.tensor, atol=boxes, rtol=0)
    assert_close(sure.scores.float(), also.scores, atol=scores, rtol=0)


def confident(found: Instances) -> Instances:
    """Return boxes sorted by their left sides, because scores may change places."""
    found = found[found.scores > 0.5]
    return found[found.pred_boxes.tensor[:, 0].argsort()]


def test_a_cpu_computes_single_columns_of_coarse_levels_in_float32():
    model = build_model(load_config("configs/Shapes/denseclip_retinanet_tiny.yaml", ["MODEL.WEIGHTS", ""]))
    (p6,) = (m for name, m in model.named_modules() if name.endswith("top_block.p6"))
    for width, dtype in ((2, torch.float32), (3, torch.bfloat16)):
        x = torch.randn(4, p6.in_channels, 9, width).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            found = p6(x)
            assert found.dtype == dtype and p6(x[..., :1, :]).dtype == dtype
            assert torch.is_autocast_enabled("cpu")
        assert_close(found.float(), p6(x), atol=0.05, rtol=0.05)
    with pytest.raises(RuntimeError), torch.autocast("cpu", torch.bfloat16):
        p6(torch.randn(1, 5, 9, 2))
    assert p6.weight.dtype == torch.float32 and torch.is_autocast_enabled("cpu") is False

"""Which timm models are supported, and which are refused."""

import pytest
import torch
from architectures import CONFIG, clip_of, visual_of

from denseclip_d2.builder import build_model
from denseclip_d2.config import load_config
from denseclip_d2.visual import CLIPTimm
from denseclip_d2.visual.timm_backbone import TimmBackbone, create_trunk


@pytest.mark.parametrize(
    "family, depth", [("ConvNeXt", 3), ("EVA02", 3), ("MobileCLIP", 2), ("MobileCLIP", 5)]
)
def test_a_frozen_part_stays_as_it_is(family, depth, tmp_path):
    visual = visual_of(clip_of(family), family, freeze_at=depth, drop_path_rate=0.5).train()
    stage = list(visual.stages.values())[depth - 2]
    last = visual.trunk.feature_info[stage]["module"]
    frozen = [name for name, p in visual.trunk.named_parameters() if not p.requires_grad]
    assert any(name.startswith(f"{last}.") for name in frozen)
    assert any(p.requires_grad for p in visual.parameters()) == (depth < 5)
    before = {name: x.clone() for name, x in visual.trunk.state_dict().items()}
    features = visual(torch.randn(2, 3, 64, 64))
    if depth < 5:
        features["dense_embedding"].sum().backward()
    assert all(visual.trunk.get_parameter(name).grad is None for name in frozen)
    statistics = [name for name in before if "running" in name and name.startswith((f"{last}.", "stem"))]
    assert all(torch.equal(before[name], visual.trunk.state_dict()[name]) for name in statistics)
    assert torch.equal(visual(x := torch.ones(1, 3, 64, 64))["res2"], visual(x)["res2"]) or depth < 2


def test_activations_can_be_computed_again():
    torch.manual_seed(0)
    model = clip_of("EVA02")
    image, gradients = torch.randn(1, 3, 64, 64), []
    for again in (False, True):
        visual = visual_of(model, "EVA02", activation_checkpointing=again).train()
        torch.manual_seed(0)
        visual.fpn1.load_state_dict(visual_of(model, "EVA02").fpn1.state_dict())
        visual(image)["dense_embedding"].square().sum().backward()
        gradients.append(visual.trunk.blocks[0].attn.proj.weight.grad)
    torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match="count each batch twice"):
        visual_of(clip_of("MobileCLIP"), "MobileCLIP", activation_checkpointing=True)


def test_what_crashes_torch_stays_contiguous():
    keys = {"CLIP_MODEL": "tiny-MobileCLIP", "VISUAL.DENSE_FEATURES": "attention"}
    opts = [x for key, value in keys.items() for x in (f"MODEL.DENSECLIP.{key}", value)]
    cfg = load_config(CONFIG, [*opts, "MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.CHANNELS_LAST
    assert all(parameter.is_contiguous() for parameter in build_model(cfg).parameters())


@pytest.mark.parametrize(
    "name, reason",
    [
        (
            "maxvit_rmlp_pico_rw_256",
            "MaxxVit cannot be a backbone. It does not support images of any",
        ),
        ("botnet26t_256", "does not support images of any size .AssertionError"),
        ("mixer_s32_224", "does not support images of any size"),
        ("mobilevitv2_050", r"96 x 160 pixels, its res5 is \(4, 6\) instead of \(3, 5\)"),
        ("inception_v3", r"its res2 is \(20, 36\) instead of \(24, 40\)"),
    ],
)
def test_a_model_that_takes_some_sizes_alone_is_refused(name, reason):
    with torch.device("meta"), pytest.raises(ValueError, match=reason):
        TimmBackbone(create_trunk(name), norm="BN")


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        (
            "poolformer_s12",
            {"freeze_at": 1},
            "freeze_at is 1; timm does not tell .* of MetaFormer",
        ),
        ("vgg11", {"freeze_at": 2}, "freeze_at is 2; timm does not tell"),
        (
            "selecsls42",
            {"norm": "FrozenBN", "activation_checkpointing": True},
            "timm's SelecSls has no activation checkpointing",
        ),
    ],
)
def test_what_timm_cannot_do_is_said(name, arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TimmBackbone(create_trunk(name), **{"norm": "BN", **arguments})


def test_a_model_without_stochastic_depth_says_so():
    with pytest.raises(ValueError, match="cannot build 'selecsls42' with .*Set drop_path_rate to 0"):
        create_trunk("selecsls42", drop_path_rate=0.1)


@pytest.mark.parametrize(
    "levels, depth, trained",
    [
        (["res4", "res5"], 2, ["res4", "res5"]),  # a model without res2
        (["res4", "res5"], 4, ["res5"]),
        (["res4"], 5, []),  # without its last stage
    ],
)
def test_stages_that_are_not_there_are_not_frozen_in_anothers_place(levels, depth, trained):
    with torch.device("meta"):
        trunk = create_trunk("efficientvit_m0")
        backbone = TimmBackbone(trunk, norm="BN", freeze_at=depth, out_features=levels)
        features = backbone(torch.zeros(2, 3, 96, 160))
    assert [name for name, x in features.items() if x.requires_grad] == trained


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (
            {"dense": "key-key"},
            "is 'key-key', which timm's FastVit does not have. Choose from 'attention', 'value'",
        ),
        ({"out_features": ["res2", "p5"]}, "timm's FastVit has no level p5. Choose levels from res2"),
        ({"norm": "GN"}, "norm is 'GN', and timm's FastVit has batch norms"),
    ],
)
def test_what_a_model_of_timm_cannot_have_is_said(kwargs, message):
    arguments = {
        "model_name": "fastvit_t8",
        "embed_dim": 64,
        "pool": "avg",
        "proj": None,
        "norm": "BN",
        **kwargs,
    }
    with pytest.raises(ValueError, match=message):
        CLIPTimm(**arguments)

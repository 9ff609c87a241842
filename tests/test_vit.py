import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn
from torch.testing import assert_close

from configs import prepared_cfg
from denseclip_d2.checkpoint.released import our_name
from denseclip_d2.engine.optimizer import build_optimizer
from denseclip_d2.visual import CLIPResNet, CLIPViT, build_clip_vit_backbone, build_visual_encoder
from denseclip_d2.visual.attention_pool import fit_positions, resize_positional_embedding
from denseclip_d2.visual.clip_vit import VisualBlock
from denseclip_d2.visual.dense_features import DENSE_FEATURES, DenseAttention

RETINANET = "configs/Shapes/denseclip_retinanet_tiny.yaml"
MASK_RCNN = "configs/Shapes/denseclip_mask_rcnn_tiny.yaml"
VIT = ["MODEL.DENSECLIP.CLIP_MODEL", "ViT-tiny-quickgelu"]
LEVELS = ("res2", "res3", "res4", "res5")
STRIDES = (4, 8, 16, 32)


def tiny_vit(**kwargs) -> CLIPViT:
    tiny = {
        "layers": 4, "width": 32, "head_width": 8, "patch_size": 16, "embed_dim": 24, "grid_size": 4,
        "quick_gelu": True, "norm": "BN",
    }  # fmt: skip
    return CLIPViT(**{**tiny, **kwargs})


@pytest.mark.parametrize("image", ["a", "b"])
def test_vit_equals_the_original(reference, image):
    record = reference("clip_vit_seg")
    model = tiny_vit(double_class_embedding=True).eval()
    model.load_state_dict(record.weights)
    features = model(record.inputs[image])
    keys = (*LEVELS, "global_embedding", "dense_embedding")
    assert set(features) == set(keys)
    for key, name in zip(keys, (0, 1, 2, 3, "global", "local"), strict=True):
        assert_close(features[key], record.outputs[f"{image}/{name}"], atol=1e-5, rtol=1e-5)


def test_the_class_embedding_is_added_once_unless_asked(reference):
    record = reference("clip_vit_seg")
    once, twice = tiny_vit().eval(), tiny_vit(double_class_embedding=True).eval()
    twice.load_state_dict(record.weights)
    # As a plain ViT: the second one is in the position of the class token.
    weights = {**record.weights, CLIPViT.position_key: record.weights[CLIPViT.position_key].clone()}
    weights[CLIPViT.position_key][0] += weights["class_embedding"]
    once.load_state_dict(weights)
    image = record.inputs["a"]
    assert_close(once(image)["dense_embedding"], twice(image)["dense_embedding"], atol=1e-5, rtol=1e-5)
    once.load_state_dict(record.weights)
    assert not torch.allclose(once(image)["dense_embedding"], twice(image)["dense_embedding"], atol=1e-2)


def test_positions_are_resized_as_released(reference):
    record = reference("load_posembed_vit_ir320")
    (before,), (after,) = record.inputs.values(), record.outputs.values()
    assert_close(resize_positional_embedding(before, 320 // 16), after, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("pool", ["tok", "avg"])
@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("patch, size", [(16, 64), (32, 128), (14, 64)])
def test_embeddings_at_clips_resolution_are_open_clips(patch, size, quick_gelu, pool):
    """With 14-pixel patches too, on the image resized to the same number of patches."""
    clip = VisionTransformer(
        4 * patch, patch, 32, 4, 4, 4.0, output_dim=24, output_tokens=True,
        act_layer=QuickGELU if quick_gelu else nn.GELU, pool_type=pool,
    ).eval()  # fmt: skip
    model = tiny_vit(patch_size=patch, quick_gelu=quick_gelu, pool_type=pool).eval()
    incompatible = model.load_state_dict(clip.state_dict(), strict=False)
    assert not incompatible.unexpected_keys
    assert all(name.startswith("fpn") for name in incompatible.missing_keys)
    image = torch.randn(2, 3, size, size)
    pooled, tokens = clip(F.interpolate(image, (4 * patch, 4 * patch), mode="bilinear"))
    features = model(image)
    assert_close(features["global_embedding"], pooled, atol=1e-5, rtol=1e-4)
    dense = (tokens @ clip.proj).transpose(1, 2).unflatten(2, (4, 4))
    assert_close(features["dense_embedding"], dense, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name, width", [("ViT-B-16", 768), ("ViT-B-32", 768), ("ViT-L-14", 1024)])
def test_encoder_is_built_by_name(name, width):
    """At strides 4 to 32 for any patch size. Parameters have shapes and no memory."""
    cfg = prepared_cfg("configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml", [])
    cfg.MODEL.FPN.IN_FEATURES = []
    cfg.MODEL.DENSECLIP.CLIP_MODEL = f"{name}-quickgelu"
    cfg.MODEL.DENSECLIP.VISUAL.NORM = "BN"
    patch, layers = int(name[-2:]), {768: 12, 1024: 24}[width]
    stride = 32 if patch == 32 else 16
    for resolution, grid_size in ((0, 224 // patch), (640, 640 // stride)):
        cfg.MODEL.DENSECLIP.VISUAL.RESOLUTION = resolution
        with torch.device("meta"):
            model = build_clip_vit_backbone(cfg, None)
        assert model.grid_size == grid_size
        assert model.get_parameter(model.position_key).shape == (1 + grid_size**2, width)
    assert model.conv1.weight.shape == (width, 3, patch, patch)
    assert list(model.taps.values()) == [layers // 3, layers // 2, 2 * layers // 3, layers]
    features = model(torch.empty(2, 3, 64, 96, device="meta"))
    for level, of_level in zip(LEVELS, STRIDES, strict=True):
        assert model.output_shape()[level].stride == of_level
        assert features[level].shape == (2, width, 64 // of_level, 96 // of_level)
    assert model.embedding_stride == stride
    assert features["dense_embedding"].shape == (2, model.embed_dim, 64 // stride, 96 // stride)


@pytest.mark.parametrize("patch", [14, 16, 32])
@pytest.mark.parametrize("size", [(33, 70), (1, 1), (100, 1), (160, 224)])
def test_any_size_goes_in_as_if_padded(patch, size):
    """An image smaller than a patch or larger than the grid equals the image with zeros around it."""
    model = tiny_vit(patch_size=patch).eval()
    image = torch.randn(2, 3, *size)
    height, width = (-(-side // 32) * 32 for side in size)
    features = model(image)
    padded = model(F.pad(image, (0, width - size[1], 0, height - size[0])))
    for name, shape in model.output_shape().items():
        assert features[name].shape == (2, shape.channels, height // shape.stride, width // shape.stride)
        assert_close(features[name], padded[name])
    assert features["global_embedding"].shape == (2, 24)


def test_positions_are_interpolated_or_cropped():
    model = tiny_vit()
    grid = model.positional_embedding[1:].T.unflatten(1, (4, 4))
    fitted = {p: fit_positions(model.positional_embedding, 4, 2, 3, p) for p in ("interpolate", "crop")}
    expected = {
        "interpolate": F.interpolate(grid[None], (2, 3), mode="bilinear")[0],
        "crop": grid[:, :2, :3],
    }
    for position, positions in fitted.items():
        assert_close(positions[0], model.positional_embedding[0])
        assert_close(positions[1:].T.unflatten(1, (2, 3)), expected[position])
    image = torch.randn(1, 3, 32, 64)
    cropped = tiny_vit(position="crop")
    cropped.load_state_dict(model.state_dict())
    assert not torch.allclose(cropped.eval()(image)["res5"], model.eval()(image)["res5"])


@pytest.mark.parametrize("with_embeddings", [True, False])
def test_every_parameter_learns(with_embeddings):
    model = tiny_vit(with_embeddings=with_embeddings)
    sum(f.square().sum() for f in model(torch.randn(2, 3, 64, 96)).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # A bias before a norm over the batch has no effect.
        assert name == "fpn1.1.bias" or parameter.grad.abs().max() > 0, name


def test_without_embeddings_there_is_no_projection():
    model = tiny_vit(with_embeddings=False).eval()
    assert not {"proj", "ln_post.weight", "ln_post.bias"} & set(model.state_dict())
    assert set(model(torch.rand(1, 3, 32, 32))) == set(LEVELS) == set(model.output_shape())


@pytest.mark.parametrize("checkpointing", [True, False])
def test_checkpointed_activations_change_nothing(checkpointing, monkeypatch):
    """The recomputation drops the same random blocks."""
    plain, model = (
        tiny_vit(drop_path_rate=0.5),
        tiny_vit(drop_path_rate=0.5, activation_checkpointing=checkpointing),
    )
    model.load_state_dict(plain.state_dict())
    runs, forward = [], VisualBlock.forward
    monkeypatch.setattr(VisualBlock, "forward", lambda self, *args: runs.append(self) or forward(self, *args))
    image, gradients = torch.randn(2, 3, 64, 64), []
    for encoder in (plain, model):
        torch.manual_seed(1)
        sum(f.square().mean() for f in encoder(image).values()).backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    assert_close(gradients[1], gradients[0])
    assert len(runs) == 4 + (8 if checkpointing else 4)


def test_stochastic_depth_rises_and_only_trains():
    model = tiny_vit(layers=5, drop_path_rate=0.4)
    assert [block.drop_path.p for block in model.transformer.resblocks] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4]
    )
    block, x = VisualBlock(32, 4, drop_path_rate=0.75), torch.randn(400, 3, 32)
    whole = VisualBlock(32, 4).eval()
    whole.load_state_dict(block.state_dict())
    assert_close(block.eval()(x), whole(x))
    # A branch is dropped for a whole image. Both branches are dropped for 0.75^2 of the images.
    unchanged = (block.train()(x) == x).flatten(1).float().mean(1)
    assert set(unchanged.tolist()) == {0.0, 1.0}
    assert unchanged.mean().item() == pytest.approx(0.75**2, abs=0.1)


@pytest.mark.parametrize("freeze_at, blocks", [(0, 0), (1, 0), (2, 1), (3, 2), (5, 4)])
def test_freezing_stops_the_first_blocks(freeze_at, blocks):
    model = tiny_vit(freeze_at=freeze_at, drop_path_rate=0.1)
    sum(f.square().mean() for f in model(torch.randn(2, 3, 64, 64)).values()).backward()
    frozen = tuple(f"transformer.resblocks.{i}." for i in range(blocks))
    if freeze_at:
        frozen += ("conv1.", "class_embedding", "positional_embedding", "ln_pre.")
    if freeze_at == 5:
        frozen += ("ln_post.", "proj")
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    assert all(block.drop_path.p == 0 for block in model.transformer.resblocks[:blocks])
    assert all(block.drop_path.p > 0 for block in model.transformer.resblocks[max(blocks, 1) :])


@pytest.mark.parametrize(
    "norm, kind",
    [
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("FrozenBN", FrozenBatchNorm2d),
        ("", nn.Identity),
    ],
)
@pytest.mark.parametrize("patch, places", [(16, [2]), (32, [2, 5])])
def test_norm_of_the_pyramid_is_the_one_asked_for(norm, kind, patch, places):
    model = tiny_vit(norm=norm, patch_size=patch)
    assert [i for i, layer in enumerate(model.fpn1) if isinstance(layer, kind)] == places


@pytest.mark.parametrize("name, kind", [("ViT-tiny-quickgelu", CLIPViT), ("RN-shapes-quickgelu", CLIPResNet)])
def test_the_architecture_chooses_the_encoder(name, kind):
    cfg = prepared_cfg(RETINANET, ["MODEL.DENSECLIP.CLIP_MODEL", name])
    assert type(build_visual_encoder(cfg)) is kind


@pytest.mark.parametrize("name", ["RN50-quickgelu", "convnext_base", "ViT-B-16-SigLIP"])
def test_another_architecture_is_refused(name):
    cfg = prepared_cfg(RETINANET, ["MODEL.DENSECLIP.CLIP_MODEL", name])
    with pytest.raises(ValueError, match="not a ViT as CLIP has it"):
        build_clip_vit_backbone(cfg, None)


def test_a_level_that_it_does_not_have_is_refused():
    with pytest.raises(ValueError, match="a CLIP ViT has no level c5. Choose levels from res2"):
        tiny_vit(out_features=["res4", "c5"])


@pytest.mark.parametrize(
    "model, dilation, level",
    [
        ("ViT-tiny-quickgelu", 1, "res4"),
        ("RN-shapes-quickgelu", 1, "res5"),
        ("RN-shapes-quickgelu", 2, "res4"),
    ],
)
def test_the_score_map_joins_the_level_of_its_stride(model, dilation, level):
    cfg = prepared_cfg(RETINANET, ["MODEL.DENSECLIP.CLIP_MODEL", model])
    cfg.MODEL.DENSECLIP.VISUAL.RES5_DILATION = dilation
    cfg.DATASETS.TRAIN = ()
    cfg.MODEL.DENSECLIP.CLASS_NAMES = [f"class {i}" for i in range(18)]
    backbone = build_model(cfg).backbone
    assert backbone.level == level
    plain, guided = backbone.visual.output_shape(), backbone.fpn.bottom_up.output_shape()
    assert {
        name: guided[name].channels - plain[name].channels for name in plain if guided[name] != plain[name]
    } == {level: 18}


def test_a_score_map_without_a_level_of_its_stride_is_refused():
    keys = [*VIT, "MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res5']"]
    with pytest.raises(ValueError, match="stride 16, as none of the features .*'res5'. has"):
        build_model(prepared_cfg(MASK_RCNN, keys))
    with pytest.raises(ValueError, match="level is 'res5'; the score map has stride 16, as res4 has"):
        build_model(prepared_cfg(MASK_RCNN, [*VIT, "MODEL.DENSECLIP.SCORE_MAP.LEVEL", "res5"]))


def training_input(height: int, width: int) -> dict:
    box = torch.tensor([[8.0, 8.0, 60.0, 70.0]])
    masks = PolygonMasks([[box[0, [0, 1, 2, 1, 2, 3, 0, 3]].numpy()]])
    instances = Instances((height, width), gt_boxes=Boxes(box), gt_classes=torch.tensor([3]), gt_masks=masks)
    return {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8), "instances": instances}


@pytest.mark.parametrize(
    "config, plain",
    [
        (RETINANET, None),
        (MASK_RCNN, None),
        (RETINANET, ("RetinaNetGlobalNorm", "build_clip_retinanet_fpn_backbone")),
        (MASK_RCNN, ("GeneralizedRCNN", "build_clip_fpn_backbone")),
    ],
    ids=["DenseCLIP RetinaNet", "DenseCLIP Mask R-CNN", "CLIP RetinaNet", "CLIP Mask R-CNN"],
)
def test_detectors_train_and_test_on_a_vit(config, plain):
    """Every trainable parameter has a gradient, which DDP requires. ViT and contexts have their own rates."""
    multipliers = ["SOLVER.VISUAL_MULTIPLIER", "0.1", "SOLVER.CONTEXT_MULTIPLIER", "0.3"]
    cfg = prepared_cfg(config, [*VIT, *multipliers])
    if plain:
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME = plain
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    visual = "backbone.bottom_up." if plain else "backbone.visual."
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            factor = 0.1 if name.startswith(visual) else 0.3 if name.endswith(".contexts") else 1.0
            assert group["lr"] == pytest.approx(cfg.SOLVER.BASE_LR * factor)
    inputs = [training_input(90, 150), training_input(96, 100)]
    with EventStorage():
        losses = model(inputs)
    assert ("loss_pixel_text" in losses) == (not plain)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    before = model.get_parameter(f"{visual}conv1.weight").detach().clone()
    optimizer.step()
    assert not torch.equal(model.get_parameter(f"{visual}conv1.weight"), before)
    with torch.no_grad():
        outputs = model.eval()(inputs)
    assert [x["instances"].image_size for x in outputs] == [(90, 150), (96, 100)]


@pytest.mark.parametrize("kind, parameters", [("clip", 101_282_710), ("denseclip", 105_273_494)])
def test_the_published_segmentor_has_the_released_parameters_and_recipe(released_recipe, kind, parameters):
    """Every name, rate, decay and parameter. The released text encoder at rate 0 is frozen here."""
    recipe = {"clip": "fpn_clipvit-b", "denseclip": "denseclip_fpn_vit-b"}[kind]
    released = {
        our_name(name, retinanet=False, plain=kind == "clip"): group
        for name, group in released_recipe(f"{recipe}_640x640_80k").items()
        if not name.startswith("text_encoder.")
    }
    cfg = prepared_cfg(f"configs/ADE20K-SemanticSegmentation/{kind}_semantic_fpn_ViT-B-16_80k.yaml", [])
    model = build_model(cfg)
    names = {p: name for name, p in model.named_parameters() if "text_encoder" not in name}
    assert sum(p.numel() for p in names) == parameters
    ours = {
        names[p]: (group["lr"], group["weight_decay"])
        for group in build_optimizer(cfg, model).param_groups
        for p in group["params"]
    }
    assert ours.keys() == released.keys()
    for name, group in released.items():
        assert ours[name] == pytest.approx(group), name


def test_values_are_the_last_block_without_its_attention():
    """A single token attends to itself and gets its value. Levels and class token stay CLIP's."""
    attention, value = tiny_vit().eval(), tiny_vit(dense="value").eval()
    value.load_state_dict(attention.state_dict())
    block, alone = value.transformer.resblocks[-1], torch.randn(3, 1, block_width(value))
    assert_close(block.densely(alone, DenseAttention(DENSE_FEATURES["value"], (0, 0))), block(alone))
    expected = attention(image := torch.randn(1, 3, 64, 64))
    features = value(image)
    for name in ("res2", "res5", "global_embedding"):
        assert_close(features[name], expected[name])
    assert not torch.allclose(features["dense_embedding"], expected["dense_embedding"])


def block_width(model: CLIPViT) -> int:
    return model.transformer.resblocks[-1].ln_1.normalized_shape[0]

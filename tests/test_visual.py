from contextlib import contextmanager

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.testing import assert_close

from denseclip_d2.config import load_config
from denseclip_d2.visual import CLIPResNet, build_clip_resnet_backbone
from denseclip_d2.visual.attention_pool import DenseAttentionPool, resize_positional_embedding

TINY = {
    "layers": (1, 1, 1, 1),
    "width": 16,
    "head_width": 16,
    "embed_dim": 32,
    "resolution": 64,
    "norm": "BN",
}
LEVELS = ("res2", "res3", "res4", "res5")


@pytest.mark.parametrize("size", ["2x3", "3x4", "4x4"])
@pytest.mark.parametrize("position", ["crop", "interpolate"])
def test_attention_pool_equals_the_original(reference, size, position):
    record = reference(f"attnpool_sp4_{size}")
    pool = DenseAttentionPool(4, 64, 8, 24, position)
    pool.load_state_dict(record.weights)
    global_embedding, dense = pool(record.inputs["x"])
    variant = "det" if position == "crop" else "seg"
    assert_close(global_embedding, record.outputs[f"{variant}/global"], atol=1e-5, rtol=1e-5)
    assert_close(dense, record.outputs[f"{variant}/local"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant, position", [("det", "crop"), ("seg", "interpolate")])
@pytest.mark.parametrize("resolution", [64, 192])
def test_resnet_equals_the_original(reference, variant, position, resolution):
    record = reference(f"clip_resnet_attn_{variant}_ir{resolution}")
    model = CLIPResNet(**{**TINY, "resolution": resolution}, position=position).eval()
    model.load_state_dict(record.weights)
    for name, image in record.inputs.items():
        features = model(image)
        got = [
            *(features[level] for level in LEVELS),
            features["global_embedding"],
            features["dense_embedding"],
        ]
        for key, tensor in zip((0, 1, 2, 3, "global", "local"), got, strict=True):
            assert_close(tensor, record.outputs[f"{name}/{key}"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_equals_the_original(reference, checkpointing):
    """Batch and running statistics and the first convolution's gradient, with and without checkpointing."""
    weights = reference("clip_resnet").weights
    record = reference("clip_resnet_trainmode")
    model = CLIPResNet(
        layers=(1, 2, 1, 1), width=8, head_width=64, embed_dim=32, resolution=64, norm="BN",
        with_embeddings=False, activation_checkpointing=checkpointing,
    )  # fmt: skip
    model.load_state_dict(weights)
    features = model(record.inputs["a"])
    loss = sum(features[level].square().mean() for level in LEVELS)
    loss.backward()
    for i, level in enumerate(LEVELS):
        assert_close(features[level], record.outputs[str(i)], atol=1e-4, rtol=1e-4)
    buffers = {k.removeprefix("buf/"): v for k, v in record.outputs.items() if k.startswith("buf/")}
    assert buffers
    for name, buffer in buffers.items():
        assert_close(model.get_buffer(name), buffer, atol=1e-5, rtol=1e-4)
    assert_close(loss, record.outputs["loss"], atol=1e-4, rtol=1e-4)
    assert_close(model.conv1.weight.grad, record.outputs["grad/conv1.weight"], atol=1e-4, rtol=1e-4)


@contextmanager
def saved_tensors():
    """Return the tensors that autograd keeps."""
    saved: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield saved


def test_checkpointing_changes_no_gradient_and_keeps_half_as_much():
    gradients, kept = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = CLIPResNet(
            layers=(2, 1, 1, 1), width=16, head_width=64, embed_dim=32, resolution=64, norm="BN",
            with_embeddings=False, activation_checkpointing=checkpointing,
        )  # fmt: skip
        with saved_tensors() as saved:
            features = model(torch.randn(2, 3, 96, 128))
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in saved}
        for weight in model.parameters():
            storages.pop(weight.untyped_storage().data_ptr(), None)
        kept.append(sum(x.nbytes() for x in storages.values()))
        sum(features[level].square().mean() for level in LEVELS).backward()
        gradients.append([x.grad for x in model.parameters()])
    assert_close(*gradients, atol=0, rtol=0)
    assert kept[1] < 0.5 * kept[0]


def test_eval_equals_the_original(reference):
    record = reference("clip_resnet")
    model = CLIPResNet(
        layers=(1, 2, 1, 1), width=8, head_width=64, embed_dim=32, resolution=64, with_embeddings=False
    )
    model.load_state_dict(record.weights)
    features = model.eval()(record.inputs["a"])
    for i, level in enumerate(LEVELS):
        assert_close(features[level], record.outputs[str(i)], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["det_ir320", "det_ir64", "seg_ir320", "seg_ir64"])
def test_positions_are_resized_as_released(reference, name):
    record = reference(f"load_posembed_{name}")
    (before,), (after,) = record.inputs.values(), record.outputs.values()
    assert_close(
        resize_positional_embedding(before, int(name.split("ir")[1]) // 32), after, atol=1e-6, rtol=1e-6
    )


def test_a_map_larger_than_the_grid_is_stretched_only_along_the_longer_side():
    pool = DenseAttentionPool(4, 8, 2, 8, "crop")
    positions = pool.fitted_positions(6, 3)[1:].T.unflatten(1, (6, 3))
    grid = pool.positional_embedding[1:].T.unflatten(1, (4, 4))
    columns = nn.functional.interpolate(grid[None, :, :, :3], (6, 3), mode="bilinear")[0]
    assert_close(positions, columns)
    assert_close(pool.fitted_positions(4, 3)[1:].T.unflatten(1, (4, 3)), grid[:, :, :3])


@pytest.mark.parametrize("size", [(64, 96), (33, 70), (40, 32)])
def test_any_size_goes_in_and_shapes_are_as_declared(size):
    model = CLIPResNet(**TINY).eval()
    features = model(torch.rand(2, 3, *size))
    for name, shape in model.output_shape().items():
        # Each halving rounds. The convolution of the stem rounds up, and the pools round down.
        expected = [-(-side // 2) // (shape.stride // 2) for side in size]
        assert features[name].shape == (2, shape.channels, *expected)
    assert features["global_embedding"].shape == (2, 32)
    assert features["dense_embedding"].shape == (2, 32, *features["res5"].shape[-2:])


@pytest.mark.parametrize("size", [(64, 96), (33, 70), (40, 112)])
def test_dilation_halves_the_stride_of_the_embedding_alone(size):
    plain, dilated = (CLIPResNet(**TINY, res5_dilation=dilation).eval() for dilation in (1, 2))
    assert (plain.embedding_stride, dilated.embedding_stride) == (32, 16)
    dilated.load_state_dict(plain.state_dict())
    assert dilated.output_shape() == plain.output_shape()
    image = torch.rand(2, 3, *size)
    expected, features = plain(image), dilated(image)
    assert features["dense_embedding"].shape[-2:] == features["res4"].shape[-2:]
    for name in LEVELS[:3]:
        assert_close(features[name], expected[name])
    assert features["res5"].shape == expected["res5"].shape


def test_a_dilated_res5_sees_as_far_as_clips():
    """If 2 x 2 cells are equal, pooling averages nothing, and the maps differ only in size."""
    plain, dilated = (
        CLIPResNet(**{**TINY, "layers": (1, 1, 1, 3)}, res5_dilation=dilation).eval() for dilation in (1, 2)
    )
    for name, parameter in plain.layer4.named_parameters():
        nn.init.normal_(parameter, 0.2 if name.endswith("weight") else 0.0, 0.1)
    kernel = plain.layer4[0].conv2.weight.detach()
    kernel[..., [0, 2], :] = kernel[..., [0, 2]] = 0  # this convolution is before the pooling
    dilated.load_state_dict(plain.state_dict())
    cells = torch.randn(1, 256, 4, 6).repeat_interleave(2, -1).repeat_interleave(2, -2)
    expected = plain.layer4(cells)
    assert expected.std() > 0.1
    assert_close(dilated.layer4(cells), expected.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_without_embeddings_there_is_no_attention_pool():
    model = CLIPResNet(**TINY, with_embeddings=False).eval()
    assert not [name for name in model.state_dict() if name.startswith("attnpool")]
    assert set(model(torch.rand(1, 3, 32, 32))) == set(LEVELS) == set(model.output_shape())


def test_freezing_stops_the_first_stages_and_their_statistics():
    model = CLIPResNet(**TINY, freeze_at=2).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sum(f.square().mean() for f in model(torch.rand(2, 3, 64, 64)).values()).backward()
    frozen = ("conv1.", "conv2.", "conv3.", "bn1.", "bn2.", "bn3.", "layer1.")
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            assert torch.equal(buffer, before[name]) == name.startswith(frozen), name


def test_a_frozen_encoder_keeps_the_dense_embedding():
    model = CLIPResNet(**TINY, freeze_at=5).train()
    assert not any(p.requires_grad for p in model.parameters())
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(x)["dense_embedding"], model.eval()(x)["dense_embedding"])


@pytest.mark.parametrize(
    "norm, kind", [("BN", nn.BatchNorm2d), ("SyncBN", nn.SyncBatchNorm), ("FrozenBN", FrozenBatchNorm2d)]
)
def test_norm_is_the_one_asked_for(norm, kind):
    model = CLIPResNet(**{**TINY, "norm": norm})
    norms = [
        m for m in model.modules() if isinstance(m, (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d))
    ]
    assert len(norms) == 3 + 4 * 4
    assert all(type(m) is kind or isinstance(m, kind) for m in norms)
    assert torch.count_nonzero(model.layer1[0].bn3.weight) == 0, "CLIP starts each block as identity"


def test_encoder_is_built_by_name():
    cfg = load_config("configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml", [])
    cfg.MODEL.DENSECLIP.CLIP_MODEL = "RN50x4-quickgelu"
    model = build_clip_resnet_backbone(cfg, None)
    assert model.embed_dim == 640
    assert model.output_shape()["res5"].channels == 2560
    assert model.attnpool.positional_embedding.shape == (1 + 42 * 42, 2560)


@pytest.mark.parametrize(
    "name, message", [("RN5O-quickgelu", "RN50-quickgelu"), ("ViT-B-16-quickgelu", "not a CLIP ResNet")]
)
def test_an_unknown_architecture_is_refused(name, message):
    cfg = load_config("configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml", [])
    cfg.MODEL.DENSECLIP.CLIP_MODEL = name
    with pytest.raises(ValueError, match=message):
        build_clip_resnet_backbone(cfg, None)


def test_values_of_cells_that_are_alike_are_the_global_embedding():
    """Without positions, all queries have the same result: the value."""
    pool = DenseAttentionPool(4, 64, 8, 24, "interpolate", dense="value")
    nn.init.zeros_(pool.positional_embedding)
    global_embedding, dense = pool(torch.randn(2, 64, 1, 1).expand(-1, -1, 3, 5))
    assert_close(dense, global_embedding[:, :, None, None].expand_as(dense))


def test_values_are_local_and_the_global_embedding_is_clips():
    attention, value = (CLIPResNet(**TINY, dense=dense).eval() for dense in ("attention", "value"))
    value.load_state_dict(attention.state_dict())
    pool, (x, other) = value.attnpool, torch.randn(2, 1, 512, 2, 3)
    other[..., 1:] = x[..., 1:]
    before, after = pool(x)[1], pool(other)[1]
    moved = (before - after).abs().amax(dim=1)[0]
    assert (moved[:, 0] > 1e-3).all()
    assert (moved[:, 1:] == 0).all()
    image = torch.rand(1, 3, 64, 96)
    expected, features = attention(image), value(image)
    for name in (*LEVELS, "global_embedding"):
        assert_close(features[name], expected[name])
    assert not torch.allclose(features["dense_embedding"], expected["dense_embedding"])

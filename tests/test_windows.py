"""Windowed attention in ViT blocks, and detectors that use it."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from open_clip.transformer import QuickGELU, VisionTransformer
from test_engine import final_metrics
from test_vit import LEVELS, VIT, tiny_vit
from torch import Tensor, nn
from torch.testing import assert_close

from configs import prepared_cfg
from denseclip_d2.analysis.cost import flop_analysis
from denseclip_d2.builder import resolve_sync_bn
from denseclip_d2.clip_models.layers import multi_head_attention
from denseclip_d2.engine import Trainer
from denseclip_d2.visual import build_visual_encoder
from denseclip_d2.visual.vit_block import VisualBlock

WIDTH, HEADS = 32, 4
WINDOWS = {"window_size": 3, "global_attn_indexes": (1, 3)}
DETECTORS = [
    f"{folder}/{kind}_{system}_ViT-B-16_FPN_1x"
    for folder, system in (("COCO-Detection", "retinanet"), ("COCO-InstanceSegmentation", "mask_rcnn"))
    for kind in ("clip", "denseclip")
]


def blocks(window: int) -> tuple[VisualBlock, VisualBlock]:
    """Return a block with windows and one without, of equal weights. Large biases affect padded cells."""
    windowed, plain = (VisualBlock(WIDTH, HEADS, window_size=size).double() for size in (window, 0))
    nn.init.normal_(windowed.attn.in_proj_bias, std=2.0)
    plain.load_state_dict(windowed.state_dict())
    return windowed, plain


def under_a_mask(block: VisualBlock, x: Tensor, height: int, width: int, window: int) -> Tensor:
    """Run a block without windows under a mask that allows the attention of windows."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    own = (rows // window * width + columns // window).flatten()
    mask = F.pad(own[:, None] == own, (1, 0, 1, 0), value=True)  # the class token attends to all
    attn = block.attn
    projected = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    x = x + attn.out_proj(multi_head_attention(*projected, attn.num_heads, mask))
    return x + block.mlp(block.ln_2(x))


@pytest.mark.parametrize("size", [(5, 7), (4, 8), (3, 9), (1, 1), (2, 13)])
def test_a_cell_sees_its_window_and_the_class_token_sees_all(size):
    """No output and no gradient depends on cells that pad the last windows."""
    windowed, plain = blocks(4)
    x = torch.randn(2, 1 + size[0] * size[1], WIDTH, dtype=torch.double, requires_grad=True)
    outputs = windowed(x, size), under_a_mask(plain, x, *size, 4)
    assert_close(*outputs)
    upstream = torch.randn_like(x)
    gradients = [
        torch.autograd.grad(y, [x, *block.parameters()], upstream)
        for y, block in zip(outputs, (windowed, plain), strict=True)
    ]
    assert_close(*gradients)


def test_a_window_over_the_whole_map_is_none():
    for window in (7, 20):
        windowed, plain = blocks(window)
        x = torch.randn(2, 1 + 5 * 7, WIDTH, dtype=torch.double)
        assert_close(windowed(x, (5, 7)), plain(x))


@pytest.mark.parametrize("dense", ["attention", "value"])
@pytest.mark.parametrize("window", [4, 14])
def test_weights_load_unchanged_and_one_window_has_open_clips_embeddings(window, dense):
    clip = VisionTransformer(
        64, 16, WIDTH, 4, HEADS, 4.0, output_dim=24, output_tokens=True, act_layer=QuickGELU
    ).eval()
    model = tiny_vit(
        window_size=window, global_attn_indexes=(0,), head_width=WIDTH // HEADS, dense=dense
    ).eval()
    incompatible = model.load_state_dict(clip.state_dict(), strict=False)
    assert not incompatible.unexpected_keys
    assert all(name.startswith("fpn") for name in incompatible.missing_keys)
    plain = tiny_vit(head_width=WIDTH // HEADS, dense=dense).eval()
    plain.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 64, 64)
    features = model(image)
    assert_close(features, plain(image), atol=1e-5, rtol=1e-4)
    pooled, tokens = clip(image)
    assert_close(features["global_embedding"], pooled, atol=1e-5, rtol=1e-4)
    if dense == "attention":
        expected = (tokens @ clip.proj).transpose(1, 2).unflatten(2, (4, 4))
        assert_close(features["dense_embedding"], expected, atol=1e-5, rtol=1e-4)


def test_windows_change_what_a_large_image_gives():
    model, plain = tiny_vit(**WINDOWS).eval(), tiny_vit().eval()
    plain.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 64, 96)
    features, expected = model(image), plain(image)
    assert {name: x.shape for name, x in features.items()} == {name: x.shape for name, x in expected.items()}
    assert not torch.allclose(features["dense_embedding"], expected["dense_embedding"], atol=1e-3)


def test_every_parameter_learns_and_checkpointed_activations_change_nothing():
    """With random dropped blocks and padded windows."""
    plain, model = (
        tiny_vit(**WINDOWS, drop_path_rate=0.3, activation_checkpointing=on) for on in (False, True)
    )
    model.load_state_dict(plain.state_dict())
    image, gradients = torch.randn(2, 3, 64, 160), []
    for encoder in (plain, model):
        torch.manual_seed(1)
        sum(f.square().mean() for f in encoder(image).values()).backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    assert_close(gradients[1], gradients[0])
    for name, gradient in gradients[0].items():
        # A bias before a norm over the batch has no effect.
        assert name == "fpn1.1.bias" or gradient.abs().max() > 0, name


def test_frozen_blocks_keep_their_windows():
    model = tiny_vit(**WINDOWS, freeze_at=3, drop_path_rate=0.1)
    sum(f.square().mean() for f in model(torch.randn(2, 3, 64, 64)).values()).backward()
    for i, block in enumerate(model.transformer.resblocks):
        assert block.window_size == (0 if i in WINDOWS["global_attn_indexes"] else 3)
        assert all((p.grad is None) == (i < 2) for p in block.parameters())


@pytest.mark.parametrize(
    ("layers", "chosen", "expected"),
    [
        (12, (), [2, 5, 8, 11]),
        (24, (), [5, 11, 17, 23]),
        (6, (), [1, 2, 4, 5]),
        (2, (), [0, 1]),
        (4, [0, 3], [0, 3]),
    ],
)
def test_the_last_block_of_every_quarter_attends_globally_unless_others_are_chosen(layers, chosen, expected):
    model = tiny_vit(layers=layers, window_size=3, global_attn_indexes=chosen)
    assert [i for i, block in enumerate(model.transformer.resblocks) if not block.window_size] == expected


def test_without_a_window_every_block_attends_globally():
    assert not any(block.window_size for block in tiny_vit(global_attn_indexes=(1,)).transformer.resblocks)


def test_a_block_that_is_not_there_is_refused():
    opts = [
        *VIT,
        "MODEL.DENSECLIP.VISUAL.WINDOW_SIZE",
        3,
        "MODEL.DENSECLIP.VISUAL.GLOBAL_ATTN_INDEXES",
        (1, 4, 9),
    ]
    cfg = prepared_cfg("configs/Shapes/denseclip_retinanet_tiny.yaml", opts)
    with pytest.raises(ValueError, match=r"global_attn_indexes has 4, 9; the blocks of the ViT are 0 to 3\."):
        build_visual_encoder(cfg)


def test_flops_are_those_of_the_windows():
    """4 x 6 cells in four windows of 3 x 3: query, key and value of all 36 positions, and attention."""
    image, flops = (torch.rand(1, 3, 64, 96),), {}
    for window in (0, 3):
        model = tiny_vit(window_size=window, global_attn_indexes=(1, 3)).eval()
        analysis = flop_analysis(model, image).unsupported_ops_warnings(False)
        flops[window] = analysis.uncalled_modules_warnings(False).total()
    tokens, windows, places = 1 + 4 * 6, 2 * 2, 1 + 3 * 3
    everywhere = 3 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH
    within = 3 * windows * places * WIDTH**2 + 2 * windows * (places**2 + places) * WIDTH
    assert flops[3] - flops[0] == 2 * (within - everywhere)


@pytest.mark.parametrize("name", DETECTORS)
def test_the_detectors_on_vit_b_are_built(name):
    """Parameters have no memory."""
    cfg = resolve_sync_bn(prepared_cfg(f"configs/{name}.yaml", []))
    guided = "denseclip" in name
    if guided:
        cfg.DATASETS.TRAIN = ()
        cfg.MODEL.DENSECLIP.CLASS_NAMES = [f"class {i}" for i in range(80)]
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        backbone = build_model(cfg).backbone
    visual = backbone.visual if guided else backbone.bottom_up
    windows = [block.window_size for block in visual.transformer.resblocks]
    assert windows == [14, 14, 0] * 4
    assert [block.drop_path.p for block in visual.transformer.resblocks][-1] == 0.1
    assert (visual.position, visual.grid_size) == ("interpolate", 14)
    assert set(visual.output_shape()) == set(LEVELS if "mask" in name else LEVELS[1:])
    if guided:
        assert backbone.level == "res4"


@pytest.mark.parametrize("system", ["retinanet", "mask_rcnn"])
def test_detectors_train_on_windows(system, small_shapes, tmp_path):
    _, train, val = small_shapes
    opts = {
        "MODEL.WEIGHTS": "", "MODEL.DENSECLIP.VISUAL.WINDOW_SIZE": 3,
        "MODEL.DENSECLIP.VISUAL.GLOBAL_ATTN_INDEXES": (1,),
        "DATASETS.TRAIN": (train,), "DATASETS.TEST": (val,),
        "DATALOADER.NUM_WORKERS": 0, "SOLVER.MAX_ITER": 2, "SOLVER.IMS_PER_BATCH": 2,
        "OUTPUT_DIR": tmp_path / "output",
    }  # fmt: skip
    opts = [str(x) for pair in opts.items() for x in pair]
    trainer = Trainer(prepared_cfg(f"configs/Shapes/denseclip_{system}_tiny.yaml", [*VIT, *opts]))
    trainer.resume_or_load(resume=False)
    block = trainer.model.backbone.visual.transformer.resblocks[0]
    before = block.attn.in_proj_weight.detach().clone()
    trainer.train()
    assert block.window_size == 3 and not torch.equal(block.attn.in_proj_weight, before)
    assert final_metrics(Path(tmp_path / "output"))["loss_pixel_text"] > 0

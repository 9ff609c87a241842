import json
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis as Detectron2FlopCountAnalysis
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from torch import nn

from configs import prepared_cfg
from denseclip_d2.analysis.cost import activation_analysis, analyze, flop_analysis
from denseclip_d2.clip_models import get_clip_architecture
from denseclip_d2.language.prefix_tree import build_prefix_tree
from denseclip_d2.language.text_encoder import PACK_TOKENS
from denseclip_d2.shapes.dataset import CLASS_NAMES

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["MODEL.DENSECLIP.CLASS_NAMES", CLASS_NAMES, "MODEL.DEVICE", "cpu"]

# Parameters (M) and FLOPs (G) of the released models at 1280x800 (COCO) and 1024x1024 (ADE20K), as today's
# fvcore counts them.
MODELS = {
    "COCO-Detection/clip_retinanet_RN50_FPN_1x": (37.99, 265.17),
    "COCO-Detection/denseclip_retinanet_RN50_FPN_1x": (60.45, 285.18),
    "COCO-Detection/clip_retinanet_RN101_FPN_1x": (56.98, 341.14),
    "COCO-Detection/denseclip_retinanet_RN101_FPN_1x": (78.00, 359.90),
    "COCO-InstanceSegmentation/clip_mask_rcnn_RN50_FPN_1x": (44.42, 285.97),
    "COCO-InstanceSegmentation/denseclip_mask_rcnn_RN50_FPN_1x": (66.69, 305.93),
    "COCO-InstanceSegmentation/clip_mask_rcnn_RN101_FPN_1x": (63.41, 361.94),
    "COCO-InstanceSegmentation/denseclip_mask_rcnn_RN101_FPN_1x": (84.24, 380.65),
    "ADE20K-SemanticSegmentation/clip_semantic_fpn_RN50_80k": (31.04, 248.83),
    "ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN50_80k": (50.25, 269.83),
    "ADE20K-SemanticSegmentation/clip_semantic_fpn_RN101_80k": (50.03, 326.62),
    "ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN101_80k": (67.80, 346.29),
    "ADE20K-SemanticSegmentation/clip_semantic_fpn_ViT-B-16_80k": (101.28, 863.46),
    "ADE20K-SemanticSegmentation/denseclip_semantic_fpn_ViT-B-16_80k": (105.27, 869.16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_flops_are_the_papers(name):
    parameters, flops = MODELS[name]
    cfg = prepared_cfg(str(ROOT / "configs" / f"{name}.yaml"), ["MODEL.DEVICE", "cpu"])
    counts = analyze(cfg, ["parameter", "flop"], (1024, 1024) if "ADE20K" in name else (800, 1280))
    assert counts["parameter"].total / 1e6 == pytest.approx(parameters, rel=1e-3)
    assert counts["flop"].total / 1e9 == pytest.approx(flops, rel=5e-3)
    # Released: 63.66 and 63.40, with 13 of CLIP's 77 positions.
    text_encoder = 0 if "/clip" in name else 63.66 if "RN50" in name else 63.40
    assert counts["parameter"].text_encoder / 1e6 == pytest.approx(text_encoder, rel=1e-3)


class Fused(nn.Module):
    def forward(self, query, key, value):
        return F.scaled_dot_product_attention(query, key, value)


class Explicit(nn.Module):
    """The same attention from products that fvcore counts without help."""

    def forward(self, query, key, value):
        return (query @ key.mT).softmax(-1) @ value


def test_fused_attention_counts_as_its_products_do():
    shapes = ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6))  # heads, tokens and widths all differ
    inputs = tuple(torch.rand(shape) for shape in shapes)
    expected = FlopCountAnalysis(Explicit(), inputs).total()
    assert expected == 2 * 3 * 5 * 7 * (8 + 6)
    assert flop_analysis(Fused(), inputs).total() == expected
    assert activation_analysis(Fused(), inputs).total() == 2 * 3 * 5 * 6


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


def test_multi_head_attention_counts_the_same_fused_and_not():
    """With gradients, torch runs operators that fvcore counts. Without, it runs one fused operator."""
    model, inputs = SelfAttention().eval(), (torch.rand(2, 7, 32),)
    unfused = FlopCountAnalysis(model, inputs)
    with torch.no_grad():
        fused = flop_analysis(model, inputs)
        assert set(fused.by_operator()) == {"_native_multi_head_attention"}
    assert fused.total() == unfused.total() == 2 * (4 * 7 * 32 * 32 + 2 * 7 * 7 * 32)
    # Only the unfused form returns the attention weights (4 heads of 7 x 7).
    unfused = ActivationCountAnalysis(model, inputs).total() - 2 * 4 * 7 * 7
    with torch.no_grad():
        assert activation_analysis(model, inputs).total() == unfused


def test_what_is_counted_is_what_inference_runs():
    """Detectron2's count of the whole model misses attention. Its formula is added."""
    opts = [*NAMES, "MODEL.DENSECLIP.VISUAL.DENSE_FEATURES", "attention"]
    cfg = prepared_cfg(str(ROOT / "configs/Shapes/denseclip_retinanet_tiny.yaml"), opts)
    height, width = 90, 150  # padded to 96 x 160
    count = analyze(cfg, ["flop"], (height, width))["flop"]
    reference = Detectron2FlopCountAnalysis(
        build_model(cfg).eval(), [{"image": torch.rand(3, height, width)}]
    ).unsupported_ops_warnings(False)
    reference.uncalled_modules_warnings(False)
    language = reference.by_module()["model.backbone.language.text_encoder"]
    (pack,) = build_prefix_tree(build_model(cfg).backbone.language.prompts, 1, PACK_TOKENS["cpu"])
    text_attention = 2 * (2 * len(pack.ids) ** 2 * 64)  # two layers
    assert count.text_encoder == language + text_attention
    pixels, classes, width = 6 * 10 + 1, len(CLASS_NAMES), 24 * 32
    attention = 2 * pixels**2 * width  # attention pool
    attention += 3 * 2 * (classes**2 + classes * pixels) * 64  # three layers of the context decoder
    assert count.total == reference.total() - language + attention
    assert (
        count.total
        == count.by_module["backbone"] + count.by_module["head"]
        == sum(count.by_operator.values())
    )
    assert not [name for name in count.not_counted if "attention" in name or "mm" in name or "conv" in name]


def test_a_two_stage_detector_is_counted_on_1000_proposals_and_100_masks():
    """Independent of a random RPN's proposals. The layers of the heads are counted by their formulas."""
    cfg = prepared_cfg(str(ROOT / "configs/Shapes/denseclip_mask_rcnn_tiny.yaml"), NAMES)
    modules = analyze(cfg, ["flop"], (64, 96))["flop"].by_module
    pyramid, hidden, classes = 64, 256, len(CLASS_NAMES)
    assert modules["roi_heads.box_head"] == 1000 * (pyramid * 7 * 7 * hidden + hidden * hidden)
    assert modules["roi_heads.box_predictor"] == 1000 * hidden * (classes + 1 + 4 * classes)
    convolutions, deconvolution = 2 * 14 * 14 * 64 * 64 * 9, 14 * 14 * 64 * 64 * 4
    assert modules["roi_heads.mask_head"] == 100 * (convolutions + deconvolution + 28 * 28 * 64 * classes)
    cells = sum((64 // stride) * (96 // stride) for stride in (4, 8, 16, 32)) + 1 * 2  # P6 pools P5
    assert modules["proposal_generator"] == cells * (64 * 64 * 9 + 64 * 3 * (1 + 4))
    assert modules[""] == modules["backbone"] + modules["proposal_generator"] + modules["roi_heads"]


@pytest.mark.parametrize(
    ("system", "classifier", "regions"),
    [
        ("semantic_fpn", "sem_seg_head.classifier", 16 * 24),
        ("retinanet", "head.classifier", 9 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1)),
        ("mask_rcnn", "roi_heads.box_predictor.classifier", 1000),
    ],
)
def test_heads_that_classify_by_text_are_counted(system, classifier, regions):
    """The classifier compares each region with each name, and with the background of an R-CNN."""
    names = (*CLASS_NAMES, "background") if system == "semantic_fpn" else CLASS_NAMES
    opts = ["MODEL.DENSECLIP.CLASS_NAMES", names, "MODEL.DEVICE", "cpu"]
    opts += ["MODEL.DENSECLIP.GEOMETRIC_ENSEMBLE.BETA", 0.5]
    cfg = prepared_cfg(str(ROOT / f"configs/Shapes/denseclip_{system}_text_tiny.yaml"), opts)
    modules = analyze(cfg, ["flop", "activation"], (64, 96))["flop"].by_module
    embed_dim = get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL).embed_dim
    expected = regions * embed_dim * (len(names) + (system == "mask_rcnn"))
    assert modules[classifier] == pytest.approx(expected, rel=1e-3)  # fvcore reads it from rounded text


def test_a_segmentor_is_counted_on_the_whole_image():
    """Like Detectron2's SemanticSegmentor without its last resizing. A formula counts the ViT's attention."""
    cfg = prepared_cfg(
        str(ROOT / "configs/ADE20K-SemanticSegmentation/clip_semantic_fpn_ViT-B-16_80k.yaml"),
        ["MODEL.DEVICE", "cpu", "MODEL.DENSECLIP.CLIP_MODEL", "ViT-tiny-quickgelu"],
    )
    cfg.TEST.SLIDING_WINDOW.SIZE, cfg.TEST.SLIDING_WINDOW.STRIDE = (64, 64), (32, 32)
    count = analyze(cfg, ["flop"], (90, 150))["flop"]  # padded to 96 x 160
    cfg.TEST.SLIDING_WINDOW.ENABLED = False
    reference = Detectron2FlopCountAnalysis(
        build_model(cfg).eval(), [{"image": torch.rand(3, 90, 150)}]
    ).unsupported_ops_warnings(False)
    reference.uncalled_modules_warnings(False)
    tokens = 6 * 10 + 1
    attention = 4 * (2 * tokens**2 * 96)  # four blocks
    resizing = 4 * 90 * 150 * cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert count.total == reference.total() + attention - resizing == sum(count.by_operator.values())
    assert not [name for name in count.not_counted if "attention" in name or "mm" in name or "conv" in name]


def run_tool(monkeypatch, *args) -> None:
    command = ["analyze_model.py", "--size", "64", "96", *map(str, args), *map(str, NAMES)]
    monkeypatch.setattr("sys.argv", command)
    runpy.run_path(str(ROOT / "tools/analyze_model.py"), run_name="__main__")


def test_the_tool_prints_and_writes_the_text_encoder_apart(tmp_path, monkeypatch, capsys):
    config = str(ROOT / "configs/Shapes/denseclip_retinanet_tiny.yaml")
    run_tool(monkeypatch, "--config-file", config, "--depth", 1, "--json", tmp_path / "new/cost.json")
    report = json.loads((tmp_path / "new/cost.json").read_text())
    assert (report["config_file"], report["size"]) == (config, [64, 96])
    model = build_model(prepared_cfg(config, NAMES))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    text_encoder = sum(n for name, n in sizes.items() if ".text_encoder." in name)
    assert report["parameter"]["text_encoder"] == text_encoder > 0
    assert report["parameter"]["total"] == sum(sizes.values()) - text_encoder
    for task in ("parameter", "flop", "activation"):
        modules = report[task]["by_module"]
        assert report[task]["total"] == modules[""] == modules["backbone"] + modules["head"] > 0
        assert modules["backbone.language"] == modules["backbone.language.context_decoder"] + (
            0 if task != "parameter" else 64 + 64  # a context and gamma
        )
        assert not [name for name in modules if "text_encoder" in name]
    table = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {cells[1].strip(): [float(x) for x in cells[2:5]] for cells in table[2:]}
    assert list(rows) == ["all but the text encoder", "backbone", "head", "text encoder, frozen"]
    expected = [
        report[t]["text_encoder"] / u for t, u in (("parameter", 1e6), ("flop", 1e9), ("activation", 1e6))
    ]
    assert rows["text encoder, frozen"] == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    "args, message",
    [
        (("--config-file", "none.yaml"), "error: Config file 'none.yaml' does not exist"),
        (("--config-file", "{}", "MODEL.FOO", 1), "error: Non-existent key: MODEL.FOO"),
        (
            ("--json", "/dev/null/x.json", "--config-file", "{}"),
            "error: the folder of --json .*cannot be written",
        ),
        (
            ("--config-file", "{}", "MODEL.META_ARCHITECTURE", "PanopticFPN"),
            "error: .*'PanopticFPN' cannot be",
        ),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(monkeypatch, args, message):
    config = str(ROOT / "configs/Shapes/denseclip_mask_rcnn_tiny.yaml")
    with pytest.raises(SystemExit, match=message) as failed:
        run_tool(monkeypatch, *(str(x).format(config) for x in args))
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("args", [("--tasks", "flops"), ("--size", "0", "10"), ()])
def test_an_unknown_task_or_size_or_no_config_shows_the_usage(monkeypatch, capsys, args):
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, *args)
    assert "analyze_model.py: error: " in capsys.readouterr().err.splitlines()[-1]

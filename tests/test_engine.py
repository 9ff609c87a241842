import ast
import copy
import json
import math
import subprocess
from pathlib import Path

import open_clip
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.solver.build import maybe_add_gradient_clipping
from processes import run_script
from torch.testing import assert_close

from configs import prepared_cfg
from denseclip_d2.checkpoint.released import our_name
from denseclip_d2.config import load_config
from denseclip_d2.data.checks import check_classes
from denseclip_d2.engine import Trainer, build_optimizer
from denseclip_d2.engine.optimizer import build_gradient_clipper
from denseclip_d2.engine.setup import check_writable
from denseclip_d2.shapes.dataset import CLASS_NAMES, generate_shapes

ROOT = Path(__file__).resolve().parents[1]
LOSSES = ("loss_cls", "loss_box_reg", "loss_pixel_text")
CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"


def run_tool(tool: str, *args, datasets: Path, config: str = CONFIG) -> subprocess.CompletedProcess:
    """Run a script of tools/ with datasets in a folder of the test."""
    return run_script(f"tools/{tool}", "--config-file", config, *args, DETECTRON2_DATASETS=datasets)


def final_metrics(output: Path) -> dict[str, float]:
    """Return the last value of each metric of a run."""
    metrics = {}
    for line in (output / "metrics.json").read_text().splitlines():
        metrics.update(json.loads(line))
    return metrics


@pytest.fixture
def config(small_shapes, tmp_path):
    """Return the tiny config for eight images and three iterations."""
    _, train, val = small_shapes
    opts = {
        "DATASETS.TRAIN": f"('{train}',)", "DATASETS.TEST": f"('{val}',)", "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.MAX_ITER": 3, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.STEPS": "()", "SOLVER.WARMUP_ITERS": 0,
        "OUTPUT_DIR": tmp_path / "output",
    }  # fmt: skip
    return load_config(CONFIG, [str(x) for pair in opts.items() for x in pair])


def test_training_moves_what_it_should_and_the_text_encoder_not_at_all(config, tmp_path):
    """Every tensor of the text encoder stays bit-equal to the file of CLIP's weights."""
    clip = open_clip.create_model("RN-shapes-quickgelu")
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    config.MODEL.WEIGHTS = str(tmp_path / "clip.pt")
    trainer = Trainer(config)
    trainer.resume_or_load(resume=False)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    loaded = clip.state_dict()
    encoder = [k for k in after if "text_encoder" in k]
    assert len(encoder) > 20
    for key in encoder:
        assert torch.equal(after[key], loaded[key.split("text_encoder.")[1]]), key
    for key in ("contexts", "gamma", "context_decoder.out_proj.1.weight"):
        assert not torch.equal(after[f"backbone.language.{key}"], before[f"backbone.language.{key}"]), key
    for key in ("backbone.visual.conv1.weight", "backbone.fpn.fpn_lateral5.weight", "head.cls_score.weight"):
        assert not torch.equal(after[key], before[key]), key


def test_training_writes_finite_losses_results_and_a_checkpoint_that_resumes(config):
    torch.manual_seed(0)
    Trainer(config).train()
    output = Path(config.OUTPUT_DIR)
    metrics = final_metrics(output)
    assert all(math.isfinite(metrics[name]) for name in LOSSES), metrics
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    config.SOLVER.MAX_ITER = 5
    trainer = Trainer(config)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 3
    saved = torch.load(output / "model_final.pth", weights_only=True)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, saved["model"][name]), name
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {3}
    assert trainer.scheduler.last_epoch == 3


@pytest.mark.parametrize("mode", ["post", "pre", "context", "template"])
def test_every_prompt_mode_trains(config, mode):
    config.MODEL.DENSECLIP.PROMPT.MODE, config.MODEL.DENSECLIP.PROMPT.CONTEXT_INIT = mode, ""
    config.SOLVER.MAX_ITER = 1
    trainer = Trainer(config)
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


RECIPES = {
    "retinanet": (
        "COCO-Detection/{kind}_retinanet_RN{depth}_FPN_1x",
        "retinanet_{kind}_r{depth}_fpn_1x_coco",
    ),
    "mask_rcnn": (
        "COCO-InstanceSegmentation/{kind}_mask_rcnn_RN{depth}_FPN_1x",
        "mask_rcnn_{kind}_r{depth}_fpn_1x_coco",
    ),
    "semantic_fpn": (
        "ADE20K-SemanticSegmentation/{kind}_semantic_fpn_RN{depth}_80k",
        "{segmentor}{depth}_512x512_80k",
    ),
}
SEGMENTORS = {"clip": "fpn_clipres", "denseclip": "denseclip_fpn_res"}


@pytest.mark.parametrize("depth", [50, 101])
@pytest.mark.parametrize("system", RECIPES)
@pytest.mark.parametrize("kind", ["clip", "denseclip"])
def test_learning_rates_and_decays_are_the_released_ones(released_recipe, kind, system, depth):
    """All parameters but the text encoder's. The release trains it at rate 0; here it is frozen."""
    config, recipe = (
        name.format(kind=kind, depth=depth, segmentor=SEGMENTORS[kind]) for name in RECIPES[system]
    )
    released = {
        our_name(name, retinanet=system == "retinanet", plain=kind == "clip"): group
        for name, group in released_recipe(recipe).items()
        if not name.startswith("text_encoder.")
    }
    cfg = prepared_cfg(f"configs/{config}.yaml", [])
    model = build_model(cfg)
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    ours = {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert ours.keys() == released.keys()
    for name, group in released.items():
        assert ours[name] == pytest.approx(group), name


def clipping(kind: str, value: float):
    """A config with SGD at a rate of 1, and a model with gradients."""
    opts = [
        "SOLVER.OPTIMIZER",
        "SGD",
        "SOLVER.BASE_LR",
        1.0,
        "SOLVER.MOMENTUM",
        0.0,
        "SOLVER.WEIGHT_DECAY",
        0.0,
    ]
    clip = ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", value]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return load_config(CONFIG, [*opts, *clip]), model


def test_the_gradient_is_clipped_over_the_whole_model():
    cfg, model = clipping("full_model", 0.1)
    before = torch.cat([p.grad.flatten() for p in model.parameters()])
    build_gradient_clipper(cfg)(build_optimizer(cfg, model))
    after = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert_close(after, before / before.norm() * 0.1, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(("kind", "value"), [("norm", 0.5), ("value", 0.2)])
def test_the_gradient_of_each_parameter_is_clipped_as_in_detectron2(kind, value):
    cfg, model = clipping(kind, value)
    expected = copy.deepcopy(model)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        theirs.grad = ours.grad.clone()
    maybe_add_gradient_clipping(cfg, build_optimizer(cfg, expected)).step()
    optimizer = build_optimizer(cfg, model)
    build_gradient_clipper(cfg)(optimizer)
    optimizer.step()
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_are_not_clipped_unless_asked_for():
    cfg, _ = clipping("norm", 0.1)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    assert build_gradient_clipper(cfg) is None


def test_an_unknown_optimizer_is_refused():
    cfg = load_config(CONFIG, [])
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match="'ADAMW', 'ADAMW8BIT' or 'SGD'"):
        build_optimizer(cfg, torch.nn.Linear(1, 1))


def test_an_output_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"OUTPUT_DIR = .*file/output.* cannot be written"):
        check_writable(str(tmp_path / "file" / "output"), "OUTPUT_DIR")


def config_keys(path: Path) -> set[tuple[str, str]]:
    """Return the config keys in a source file as (last parent, name): ("VISUAL", "NORM")."""
    attributes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    parents = {node: getattr(node.value, "attr", getattr(node.value, "id", "")) for node in attributes}
    # `visual.NORM` and `cfg.MODEL.DENSECLIP.VISUAL.NORM` read the same key.
    return {(parents[node].upper(), node.attr) for node in attributes if node.attr.isupper()}


def test_every_config_key_has_a_reader():
    """A key without a reader has no effect."""
    package = ROOT / "denseclip_d2"
    sections = {
        "DENSECLIP",
        "VISUAL",
        "PROMPT",
        "CONTEXT_DECODER",
        "SCORE_MAP",
        "GEOMETRIC_ENSEMBLE",
        "SLIDING_WINDOW",
        "CUSTOM",
    }
    keys = {
        (parent, key) for parent, key in config_keys(package / "config/defaults.py") if key not in sections
    }
    assert len(keys) > 20
    readers = [path for path in package.rglob("*.py") if path.parent.name != "config"]
    # Detectron2 reads the first key. The others load configs.
    elsewhere = {("DATALOADER", "RANDOM_SUBSET_RATIO")}
    elsewhere |= {
        ("CUSTOM", "VAL"),
        ("CUSTOM", "VAL_FRACTION"),
        ("CUSTOM", "MIN_ITER"),
        ("CUSTOM", "CLASS_NAMES"),
    }
    assert keys - set().union(*map(config_keys, readers)) == elsewhere


PARTS = ("Shapes/Base-tiny.yaml", "Photographs/Base-small.yaml")  # parts of configs, which need another base
CONFIGS = sorted(
    p for p in ROOT.glob("configs/**/*.yaml") if p.parent.name != "ablations" and not str(p).endswith(PARTS)
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_config_loads(path, panopticapi):
    assert "!!python" not in path.read_text()
    cfg = load_config(str(path), [])
    by_caffe2 = cfg.MODEL.DENSECLIP.VISUAL.WEIGHTS.startswith("detectron2://")
    expected = "BGR" if by_caffe2 else "RGB"
    assert expected == cfg.INPUT.FORMAT


def test_command_line_evaluates_what_it_trained(tmp_path):
    """Train, evaluate the checkpoint with the same detections, and draw."""
    generate_shapes(tmp_path / "shapes", num_train=8, num_val=4)
    opts = (
        "OUTPUT_DIR", tmp_path / "output", "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0,
        "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "TEST.OPTIMIZE_FOR_INFERENCE", False,
        "TEST.REPORT", False,
    )  # fmt: skip
    trained = run_tool("train_net.py", *opts, "SOLVER.MAX_ITER", 1, datasets=tmp_path)
    assert trained.returncode == 0, trained.stderr[-3000:]
    weights = tmp_path / "output/model_final.pth"
    results = tmp_path / "output/inference/shapes_val/coco_instances_results.json"
    first = json.loads(results.read_text())
    assert first
    evaluated = run_tool("train_net.py", "--eval-only", *opts, "MODEL.WEIGHTS", weights, datasets=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    assert first == json.loads(results.read_text())
    images = run_tool(
        "demo.py", "--dataset", "shapes_val", "--count", 2,
        "--output", tmp_path / "images", "MODEL.WEIGHTS", weights, datasets=tmp_path,
    )  # fmt: skip
    assert images.returncode == 0, images.stderr[-3000:]
    drawn = sorted(path.name for path in (tmp_path / "images").glob("*.png"))
    assert drawn == ["000000000001.png", "000000000002.png", "overview.png"]


def test_a_test_set_without_an_evaluator_is_refused_before_training(config, monkeypatch):
    monkeypatch.setitem(vars(MetadataCatalog.get(config.DATASETS.TEST[0])), "evaluator_type", "voc")
    with pytest.raises(ValueError, match="No evaluator for .* 'voc'"):
        Trainer(config)


def test_datasets_of_other_classes_than_the_models_are_refused(config):
    config.MODEL.RETINANET.NUM_CLASSES = 5
    with pytest.raises(ValueError, match=r"has 18 classes, MODEL.RETINANET.NUM_CLASSES is 5"):
        Trainer(config)
    config.MODEL.RETINANET.NUM_CLASSES = 18
    config.DATASETS.TEST = ()
    trainer = Trainer(config)
    assert trainer.model.num_classes == 18
    MetadataCatalog.get("other").set(thing_classes=[*reversed(CLASS_NAMES)])
    with pytest.raises(ValueError, match="different classes, or the same in another order"):
        check_classes(config, [*config.DATASETS.TRAIN, "other"])
    MetadataCatalog.remove("other")


@pytest.mark.parametrize(
    ("trained", "tested", "named", "cures"),
    [
        (2, 2, 18, {"MODEL.RETINANET.NUM_CLASSES": 2, "MODEL.DENSECLIP.CLASS_NAMES": ()}),
        (3, 3, 2, {"MODEL.RETINANET.NUM_CLASSES": 3, "MODEL.DENSECLIP.CLASS_NAMES": ()}),
        (2, 2, 0, {"MODEL.RETINANET.NUM_CLASSES": 2}),
        (2, 3, 0, {}),
        (3, 2, 3, {}),
    ],
)
def test_what_is_said_of_the_number_of_classes_is_the_way_out(catalogs, trained, tested, named, cures):
    """The error names every value to change at once."""
    for name, count in (("train", trained), ("test", tested)):
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).thing_classes = list(CLASS_NAMES[:count])
    opts = ["DATASETS.TRAIN", ("train",), "DATASETS.TEST", ("test",)]
    cfg = load_config(CONFIG, [*opts, "MODEL.DENSECLIP.CLASS_NAMES", CLASS_NAMES[:named]])
    with pytest.raises(ValueError, match="has . classes, MODEL.RETINANET.NUM_CLASSES is 18") as caught:
        check_classes(cfg, cfg.DATASETS.TEST)
    for key, value in cures.items():
        assert f"{key} to {value}" in str(caught.value)
        cfg.merge_from_list([key, value])
    if cures:
        check_classes(cfg, ["train", "test"])
        Trainer.build_model(cfg)
    else:
        assert f"the same classes: train has {trained}, test has {tested}." in str(caught.value)


def test_a_lower_learning_rate_is_heeded_when_a_run_goes_on(config):
    """The error of a non-finite loss recommends this."""
    config.DATASETS.TEST, config.SOLVER.CHECKPOINT_PERIOD = (), 2
    trainer = Trainer(config)
    trainer.resume_or_load(resume=False)
    trainer.train()
    Path(config.OUTPUT_DIR, "last_checkpoint").write_text("model_0000001.pth")
    rates = []
    for factor in (1, 0.1):
        config.SOLVER.BASE_LR *= factor
        trainer = Trainer(config)
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == 2
        run_step = trainer.run_step

        def watched(trainer=trainer, run_step=run_step) -> None:
            rates.append([group["lr"] for group in trainer.optimizer.param_groups])
            run_step()

        trainer.run_step = watched
        trainer.train()
        Path(config.OUTPUT_DIR, "last_checkpoint").write_text("model_0000001.pth")
    assert len(rates) == 2
    assert rates[1] == pytest.approx([rate / 10 for rate in rates[0]])


def test_a_run_with_an_8_bit_optimizer_resumes_to_the_same_weights(config):
    config.DATASETS.TEST, config.SOLVER.CHECKPOINT_PERIOD = (), 2
    config.SOLVER.OPTIMIZER = "ADAMW8BIT"
    finals = []
    for resume in (False, True):
        trainer = Trainer(config)
        trainer.resume_or_load(resume=resume)
        assert trainer.start_iter == (2 if resume else 0)
        trainer.train()
        finals.append({name: x.clone() for name, x in trainer.model.state_dict().items()})
        Path(config.OUTPUT_DIR, "last_checkpoint").write_text("model_0000001.pth")
    assert_close(*finals, rtol=0, atol=0)
    large = [s for p, s in trainer.optimizer.state.items() if p.numel() >= 4096]
    assert large and all(s["state1"].dtype == s["state2"].dtype == torch.uint8 for s in large)


def test_a_missing_8_bit_optimizer_is_told_before_the_start(config, monkeypatch):
    monkeypatch.setattr("denseclip_d2.engine.run_checks.find_spec", lambda name: None)
    config.SOLVER.OPTIMIZER = "ADAMW8BIT"
    with pytest.raises(ValueError, match="'ADAMW8BIT' needs bitsandbytes: pip install bitsandbytes"):
        Trainer(config)


def test_a_detector_without_masks_trains_by_masks_and_is_evaluated(config):
    """The error of LOSS_TARGET 'mask' recommends MASK_ON."""
    config.MODEL.MASK_ON, config.MODEL.DENSECLIP.LOSS_TARGET = True, "mask"
    config.MODEL.RETINANET.SCORE_THRESH_TEST, config.SOLVER.MAX_ITER = 0.0, 1
    trainer = Trainer(config)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert {key.split("/")[0] for key in final_metrics(Path(config.OUTPUT_DIR)) if "/" in key} == {"bbox"}


def test_no_training_set_is_refused(config):
    config.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        Trainer(config)


def test_channels_last_changes_no_number(config):
    """Detections are equal up to rounding. Convolutions have the other memory layout."""
    models = []
    for channels_last in (True, False):
        torch.manual_seed(0)
        config.MODEL.CHANNELS_LAST = channels_last
        models.append(Trainer.build_model(config).eval())
    assert models[0].backbone.visual.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert not models[1].backbone.visual.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    image = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        pyramids = [model.backbone(image) for model in models]
    for level in ("p3", "p7", "score_map"):
        assert_close(pyramids[0][level], pyramids[1][level], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "opts, message",
    [
        (("DATASETS.TRAIN", "('shapes_trian',)"), "shapes_train"),
        (("OUTPUT_DIR", "/dev/null/output"), "OUTPUT_DIR = '/dev/null/output' cannot be written"),
        (("MODEL.DENSECLIP.CLIP_MODEL", "RN5O"), "RN50"),
        (("--eval-only", "MODEL.WEIGHTS", ""), "MODEL.WEIGHTS is empty"),
    ],
)
def test_the_last_line_of_a_failed_command_says_what_is_wrong(tmp_path, opts, message):
    generate_shapes(tmp_path / "shapes", num_train=2, num_val=1)
    output = ("OUTPUT_DIR", tmp_path / "output") if "OUTPUT_DIR" not in opts else ()
    failed = run_tool("train_net.py", *opts, *output, datasets=tmp_path)
    assert failed.returncode != 0
    assert message in failed.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_full_size_model_trains_and_evaluates_on_coco(coco_root, tmp_path):
    """RN50 with random weights on real COCO images with crowds: finite losses, and an AP."""
    copy_coco(coco_root / "coco", tmp_path / "coco", count=2)
    done = run_tool(
        "train_net.py", "OUTPUT_DIR", tmp_path / "output", "MODEL.WEIGHTS", "",
        "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0,
        "INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", 128,
        "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "TEST.REPORT", False,
        datasets=tmp_path, config="configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = final_metrics(tmp_path / "output")
    assert all(math.isfinite(metrics[name]) for name in (*LOSSES, "bbox/AP")), metrics


def copy_coco(source: Path, target: Path, count: int) -> None:
    """Copy COCO's layout with some images of each split, those with crowds first."""
    (target / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (target / split).symlink_to(source / split)
        content = json.loads((source / f"annotations/instances_{split}.json").read_text())
        crowded = {a["image_id"] for a in content["annotations"] if a["iscrowd"]}
        content["images"].sort(key=lambda image: image["id"] not in crowded)
        del content["images"][count:]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (target / f"annotations/instances_{split}.json").write_text(json.dumps(content))

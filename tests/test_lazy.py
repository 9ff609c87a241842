"""Detectron2's LazyConfigs: counterparts of YAML configs, and training from them."""

import subprocess
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.events import EventStorage
from processes import run_script
from test_engine import final_metrics
from test_meta_arch import random_input
from torch.testing import assert_close

from denseclip_d2.builder import build_model
from denseclip_d2.config import load_config
from denseclip_d2.engine.lazy import build_lazy_model, load_lazy_config, train_lazy_config
from denseclip_d2.engine.optimizer import build_optimizer
from denseclip_d2.shapes.dataset import generate_shapes

ROOT = Path(__file__).resolve().parents[1]
TWINS = sorted(path.with_suffix("") for path in ROOT.glob("configs/COCO-*/*.py"))

# The RetinaNet of configs/ with the zoo's small CLIP, on shapes
SMALL = """
from detectron2.config import LazyConfig
from denseclip_d2.clip_models import get_clip_architecture
from denseclip_d2.shapes.dataset import CLASS_NAMES
from denseclip_d2.visual import CLIPResNet

_cfg = LazyConfig.load("configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.py")
model, train, dataloader, optimizer, lr_multiplier = (
    _cfg.model, _cfg.train, _cfg.dataloader, _cfg.optimizer, _cfg.lr_multiplier
)
_small = CLIPResNet.arguments_of(get_clip_architecture("RN-shapes-quickgelu"))
model.backbone.visual.update(**{**_small, "resolution": 128})
model.backbone.language.text_encoder.architecture.name = "RN-shapes-quickgelu"
model.backbone.language.class_names = list(CLASS_NAMES)
model.num_classes = 18
model.head.conv_dims = [32]
dataloader.train.dataset.names, dataloader.test.dataset.names = "shapes_train", "shapes_val"
dataloader.train.total_batch_size, dataloader.train.num_workers, dataloader.test.num_workers = 2, 0, 0
for _mapper in (dataloader.train.mapper, dataloader.test.mapper):
    _mapper.augmentations[0].short_edge_length = 96
train.init_checkpoint, train.eval_period = "denseclip://Shapes/clip_tiny", 0
"""


@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.name)
def test_a_lazy_config_has_the_parameters_rates_and_first_loss_of_its_yaml_twin(path):
    lazy = LazyConfig.load(f"{path}.py")
    # In one memory format: others round differently, and an R-CNN may then sample other proposals.
    cfg = load_config(f"{path}.yaml", ["MODEL.CHANNELS_LAST", False])
    twin, model = build_model(cfg), build_lazy_model(lazy)
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in twin.named_parameters()
    }
    model.load_state_dict(twin.state_dict())
    losses = []
    for each in (twin, model):
        torch.manual_seed(0)
        with EventStorage():
            losses.append(each([random_input(96, 128, [[10, 10, 80, 90], [30, 5, 60, 70]], [3, 5])]))
    assert_close(losses[0], losses[1])

    def rates(optimizer, of) -> dict[str, tuple[float, float]]:
        names = {parameter: name for name, parameter in of.named_parameters()}
        return {
            names[p]: (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for p in group["params"]
        }

    lazy.optimizer.params.model = model
    assert rates(instantiate(lazy.optimizer), model) == rates(build_optimizer(cfg, twin), twin)


def test_the_tool_trains_goes_on_and_evaluates(tmp_path):
    generate_shapes(tmp_path / "shapes", num_train=8, num_val=4)
    config, output = tmp_path / "small.py", tmp_path / "output"
    config.write_text(SMALL)

    def run(*args) -> subprocess.CompletedProcess:
        options = "--config-file", config, *args, f"train.output_dir={output}"
        return run_script("tools/lazyconfig_train_net.py", *options, DETECTRON2_DATASETS=tmp_path)

    first = run("train.max_iter=2")
    assert first.returncode == 0, first.stderr[-3000:]
    assert "bbox/AP" in final_metrics(output)
    saved = torch.load(output / "model_final.pth", weights_only=False)["trainer"]["hooks"]
    assert "loss_normalizer" in saved["RunState"]  # and with it the state of a YAML config's run
    again = run("--resume", "train.max_iter=3")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Starting training from iteration 2" in again.stdout + again.stderr
    weights = f"train.init_checkpoint={output / 'model_final.pth'}"
    evaluated = run("--eval-only", weights)
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]


def test_float16_on_a_cpu_is_refused():
    cfg = load_lazy_config(f"{TWINS[0]}.py", ["train.amp.enabled=true", "train.device=cpu"])
    cfg.model = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
    with pytest.raises(ValueError, match="float16 trains on GPUs only. Set train.amp.precision=bfloat16"):
        train_lazy_config(cfg)


def test_values_over_a_lazy_config_are_yaml_and_their_keys_known():
    path = f"{TWINS[0]}.py"
    cfg = load_lazy_config(
        path,
        ["train.max_iter=7", "train.output_dir=a/b", "train.amp.enabled=true", "optimizer.lr=1e-5"],
    )
    assert cfg.optimizer.lr == 1e-5
    assert (cfg.train.max_iter, cfg.train.output_dir, cfg.train.amp.enabled) == (7, "a/b", True)
    for pair in ("train.max_itr=7", "train.max_iter"):
        with pytest.raises(ValueError, match="Give KEY=VALUE"):
            load_lazy_config(path, [pair])

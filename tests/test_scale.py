"""Several processes, mixed precision, and the log messages about both before training."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from conftest import needs_a_compiler
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._inductor import config as inductor
from torch.testing import assert_close

from denseclip_d2.config import load_config
from denseclip_d2.data.mapper import DatasetMapper
from denseclip_d2.engine import Trainer, run
from denseclip_d2.shapes import dataset as shapes
from denseclip_d2.visual import CLIPResNet

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs/Shapes/denseclip_retinanet_tiny.yaml")
LOSSES = ("loss_cls", "loss_box_reg", "loss_pixel_text")
# Exclude what makes the loss depend on the split of a batch: BN statistics, random numbers per process.
EQUAL_WHEREVER = {
    "MODEL.DENSECLIP.VISUAL.NORM": "FrozenBN", "MODEL.FPN.NORM": "", "MODEL.RETINANET.NORM": "",
    "MODEL.DENSECLIP.CONTEXT_DECODER.DROPOUT": 0.0, "INPUT.RANDOM_FLIP": "none",
    "INPUT.MIN_SIZE_TRAIN": "(96,)", "INPUT.MIN_SIZE_TEST": 96, "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.MAX_ITER": 20, "SOLVER.STEPS": "()", "SOLVER.WARMUP_ITERS": 0, "SOLVER.BASE_LR": 3e-4,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    # Rounding decides the sign of the L1 loss's gradient at 0.
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.1,
}  # fmt: skip


class Recorder(HookBase):
    """Record the losses of each iteration, averaged over processes by Detectron2."""

    def __init__(self):
        self.losses = []

    def after_step(self) -> None:
        if comm.is_main_process():
            self.losses.append([self.trainer.storage.history(name).latest() for name in LOSSES])


def config_for(root: Path, output: Path, **opts) -> CfgNode:
    datasets = {"DATASETS.TRAIN": "('scale_train',)", "DATASETS.TEST": "('scale_val',)", "OUTPUT_DIR": output}
    for split in ("train", "val"):
        if f"scale_{split}" not in DatasetCatalog:
            annotations = str(root / f"annotations/instances_{split}.json")
            register_coco_instances(f"scale_{split}", {}, annotations, str(root / split))
    return load_config(CONFIG, [str(x) for pair in {**datasets, **opts}.items() for x in pair])


def train_and_evaluate(args: Namespace) -> None:
    """Train for twenty iterations, then evaluate ``args.weights`` or the trained ones. Write a record."""
    cfg = config_for(args.root, args.output, **EQUAL_WHEREVER, **args.opts)
    seed_all_rng(1)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    recorder = Recorder()
    trainer.register_hooks([recorder])
    trainer.train()
    if args.weights:
        trainer.checkpointer.load(args.weights, checkpointables=[])
    results = Trainer.test(cfg, trainer.model)
    if comm.is_main_process():
        detections = args.output / "inference/scale_val/coco_instances_results.json"
        scores = sorted(x["score"] for x in json.loads(detections.read_text()))
        record = {"losses": recorder.losses, "bbox": results["bbox"], "scores": scores}
        (args.output / "record.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def square_shapes(tmp_path_factory):
    """Write twelve images of one size, so that none is padded. Some have no objects."""
    root = tmp_path_factory.mktemp("scale") / "shapes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "IMAGE_SIDES", (96,))
        shapes.generate_shapes(root, num_train=12, num_val=6, seed=3)
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] > 5]
    path.write_text(json.dumps(content))
    yield root
    for split in ("train", "val"):
        DatasetCatalog.pop(f"scale_{split}", None)


@pytest.fixture(scope="module")
def one_and_two(square_shapes):
    """Return the outputs of one training on one process, and on two that recompute activations."""
    outputs = [square_shapes.parent / "one", square_shapes.parent / "two"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("LOCAL_RANK", raising=False)
        for count, output in enumerate(outputs, start=1):
            output.mkdir()
            opts = {"MODEL.DENSECLIP.VISUAL.ACTIVATION_CHECKPOINTING": count == 2}
            args = arguments(num_gpus=count, root=square_shapes, output=output, opts=opts)
            args.weights = str(outputs[0] / "model_final.pth") if count == 2 else ""
            run(train_and_evaluate, args)
    return [json.loads((output / "record.json").read_text()) for output in outputs]


def arguments(**given) -> Namespace:
    """Return the launcher's arguments."""
    defaults = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    return Namespace(**{**defaults, **given})


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(one_and_two):
    """Twenty iterations on the same global batches. Some halves have no object."""
    one, two = (torch.tensor(record["losses"]) for record in one_and_two)
    assert one.shape == (20, len(LOSSES))
    assert one[-1].sum() < one[0].sum()
    assert_close(two, one, atol=1e-4, rtol=0.0)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(one_and_two):
    """The same weights, detections and AP."""
    one, two = one_and_two
    assert one["bbox"]["AP50"] > 0
    assert two["bbox"] == pytest.approx(one["bbox"], nan_ok=True)
    assert two["scores"] == pytest.approx(one["scores"], abs=1e-5)


@pytest.mark.parametrize("mode", ["post", "pre", "context", "template"])
def test_every_parameter_has_a_gradient_even_without_objects(square_shapes, tmp_path, mode):
    """Otherwise DDP would wait forever. The first images have no objects."""
    opts = {"MODEL.DENSECLIP.PROMPT.MODE": mode, "MODEL.DENSECLIP.PROMPT.CONTEXT_INIT": ""}
    cfg = config_for(square_shapes, tmp_path, **EQUAL_WHEREVER, **opts)
    model = Trainer.build_model(cfg)
    images = [x for x in DatasetCatalog.get("scale_train") if not x["annotations"]][:2]
    batch = [DatasetMapper(cfg)(image) for image in images]
    assert [len(x["instances"]) for x in batch] == [0, 0]
    with EventStorage():
        sum(model(batch).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_bfloat16_trains_on_the_cpu_as_float32_does(square_shapes, tmp_path):
    """Only the forward pass is in bfloat16. Losses stay close to those of float32."""
    losses, kinds, autocast_in_backward = {}, set(), set()
    for amp in (False, True):
        opts = {
            **EQUAL_WHEREVER, "SOLVER.AMP.ENABLED": amp, "SOLVER.AMP.PRECISION": "bfloat16",
            "SOLVER.MAX_ITER": 4, "DATASETS.TEST": "()",
        }  # fmt: skip
        seed_all_rng(1)
        trainer = Trainer(config_for(square_shapes, tmp_path, **opts))
        recorder = Recorder()
        trainer.register_hooks([recorder])
        layer = trainer.model.head.cls_score
        layer.register_forward_hook(lambda *args: kinds.add(args[-1].dtype))
        layer.weight.register_hook(lambda _: autocast_in_backward.add(torch.is_autocast_enabled("cpu")))
        trainer.train()
        losses[amp] = torch.tensor(recorder.losses)
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert kinds == {torch.float32, torch.bfloat16}
    assert autocast_in_backward == {False}
    assert_close(losses[True], losses[False], rtol=0.05, atol=0.01)
    assert not torch.equal(losses[True], losses[False])
    with torch.no_grad():
        kinds.clear()
        trainer.model.eval()([{"image": torch.zeros(3, 96, 96)}])
    assert kinds == {torch.float32}


def test_the_start_tells_the_scaled_batch_and_rate_and_every_parameter(square_shapes, tmp_path, caplog):
    """A config for two processes on one: half the batch and rate, twice the iterations."""
    opts = {**EQUAL_WHEREVER, "SOLVER.REFERENCE_WORLD_SIZE": 2, "SOLVER.BASE_LR": 3e-4, "DATASETS.TEST": "()"}
    with caplog.at_level("INFO", logger="denseclip_d2"):
        trainer = Trainer(config_for(square_shapes, tmp_path, **opts))
    (text,) = (r.getMessage() for r in caplog.records if r.getMessage().startswith("This run:"))
    assert "2 images, 2 a process" in text
    assert "0.00015 (scaled from 0.0003 for 2 processes)" in text
    assert "40: 6.7 epochs of 12 images" in text
    counts = re.findall(r"^  (?:[\d.e-]+ +[\d.e-]+|frozen) +\d+ +([\d,]+) ", text, re.MULTILINE)
    assert len(counts) == 3
    total = sum(p.numel() for p in trainer.model.parameters())
    assert sum(int(count.replace(",", "")) for count in counts) == total


@pytest.mark.slow
def test_torchrun_trains_and_evaluates_as_one_process_does(tmp_path):
    """Two processes by torchrun on CPUs. Their weights have equal detections on one and two processes."""
    shapes.generate_shapes(tmp_path / "shapes", num_train=8, num_val=4)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    opts = ("SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_ITER", "2")
    opts = (*opts, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "OUTPUT_DIR", tmp_path / "output")

    def train_net(*args) -> str:
        command = [sys.executable, "-W", "ignore", *map(str, args)]
        ours = {"DETECTRON2_DATASETS": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | ours, timeout=280
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    tool = ("tools/train_net.py", "--config-file", CONFIG)
    said = train_net(*torchrun, *tool, *opts)
    assert "2 (2 a machine), on cpu" in said
    assert "SyncBN becomes BN" in said
    detections = []
    for launcher in (torchrun, ()):
        train_net(
            *launcher, *tool, "--eval-only", *opts, "MODEL.WEIGHTS", tmp_path / "output/model_final.pth"
        )
        results = tmp_path / "output/inference/shapes_val/coco_instances_results.json"
        detections.append(json.loads(results.read_text()))
        results.unlink()
    two, one = detections
    assert one
    assert two == one


@needs_a_compiler
def test_a_compiled_visual_encoder_has_the_same_names_and_numbers_at_any_size(monkeypatch):
    """The backend compiles nothing and takes no time. On CPUs, each size is compiled separately."""
    counter = CompileCounter()
    monkeypatch.setattr(CLIPResNet, "compile", partialmethod(nn.Module.compile, backend=counter))
    opts = ["MODEL.DENSECLIP.CLASS_NAMES", shapes.CLASS_NAMES, "MODEL.DEVICE", "cpu"]
    model = Trainer.build_model(load_config(CONFIG, opts)).eval()
    compiled = Trainer.build_model(load_config(CONFIG, [*opts, "MODEL.COMPILE", True])).eval()
    compiled.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        # The size avoids PyTorch's special convolution for tiny images on CPUs.
        for size in ((256, 320), (320, 256), (384, 320), (256, 320)):
            images = torch.rand(2, 3, *size)
            assert_close(compiled.backbone(images), model.backbone(images))
    assert counter.frame_count == 3


@pytest.mark.slow
@needs_a_compiler
def test_what_pytorchs_compiler_makes_has_the_same_numbers_and_gradients():
    """In float64, so that rounding hides no difference."""
    opts = ["MODEL.DENSECLIP.CLASS_NAMES", shapes.CLASS_NAMES, "MODEL.DEVICE", "cpu"]
    models = [Trainer.build_model(load_config(CONFIG, [*opts, "MODEL.COMPILE", on])) for on in (False, True)]
    eager, compiled = (next(m for m in model.modules() if isinstance(m, CLIPResNet)) for model in models)
    for vector in (parameter for parameter in eager.parameters() if parameter.dim() == 1):
        nn.init.uniform_(vector, 0.5, 1.5)  # norms start with zeros, which stop gradients
    compiled.load_state_dict(eager.state_dict(), strict=True)
    images = torch.rand(2, 3, 128, 160, dtype=torch.float64)
    found = []
    for encoder in (eager, compiled):
        outputs = encoder.double()(images)
        sum(output.square().sum() for output in outputs.values()).backward()
        found.append((outputs, {name: parameter.grad for name, parameter in encoder.named_parameters()}))
    (expected, gradients), actual = found
    assert all(gradient.any() for gradient in gradients.values())
    assert_close(actual, (expected, gradients), rtol=1e-7, atol=1e-9)


def test_compiling_without_a_compiler_is_refused_before_training(tmp_path):
    opts = ["MODEL.COMPILE", True, "MODEL.DEVICE", "cpu", "MODEL.DENSECLIP.CLASS_NAMES", shapes.CLASS_NAMES]
    nowhere = inductor.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)})
    with nowhere, pytest.raises(ValueError, match=r"needs a C\+\+ compiler on a CPU: .*no-compiler"):
        Trainer.build_model(load_config(CONFIG, opts))


def test_compiling_and_checkpointing_are_refused_together():
    opts = ["MODEL.COMPILE", True, "MODEL.DENSECLIP.VISUAL.ACTIVATION_CHECKPOINTING", True]
    with pytest.raises(ValueError, match="do not go together"):
        Trainer.build_model(load_config(CONFIG, [*opts, "MODEL.DENSECLIP.CLASS_NAMES", shapes.CLASS_NAMES]))

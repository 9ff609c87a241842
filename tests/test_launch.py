"""How launch, config and device affect one another, without starting processes."""

import math
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from configs import prepared_cfg
from denseclip_d2.builder import resolve_sync_bn
from denseclip_d2.checkpoint import DenseCLIPCheckpointer
from denseclip_d2.config import load_config
from denseclip_d2.engine import Trainer, run
from denseclip_d2.engine.summary import overrides_of
from denseclip_d2.engine.train_loop import TrainLoop

CONFIG = str(Path(__file__).resolve().parents[1] / "configs/Shapes/denseclip_retinanet_tiny.yaml")
ONE_PROCESS = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}


def test_float16_on_a_cpu_is_refused():
    cfg = load_config(CONFIG, ["SOLVER.AMP.ENABLED", "True"])
    cfg.SOLVER.AMP.PRECISION, cfg.MODEL.DEVICE = "float16", "cpu"
    with pytest.raises(ValueError, match="Set SOLVER.AMP.PRECISION to bfloat16"):
        Trainer(cfg)


class Squares(nn.Linear):
    """A model whose loss is the mean square of its outputs."""

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        return {"loss": super().forward(torch.stack([x["image"] for x in batch])).float().square().mean()}


def train_loop(tmp_path, precision: str, **kwargs) -> TrainLoop:
    torch.manual_seed(0)
    model = Squares(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [[{"image": torch.ones(3), "file_name": "a.png"}, {"image": torch.ones(3)}]] * 2
    checkpointer = DenseCLIPCheckpointer(model, str(tmp_path))
    return TrainLoop(
        model, batches, optimizer, device="cpu", checkpointer=checkpointer, precision=precision, **kwargs
    )


def test_a_run_goes_on_in_another_precision(tmp_path):
    """float32 -> float16 starts a new gradient scaler. float16 -> float16 keeps the scale."""
    before, trainer = train_loop(tmp_path, "float32"), train_loop(tmp_path, "float16")
    before.iter = trainer.iter = 7
    trainer.load_state_dict(before.state_dict())
    older = before.state_dict()
    del older["grad_scaler"]
    trainer.load_state_dict(older)
    initial = trainer.grad_scaler.get_scale()
    trainer.grad_scaler.scale(torch.ones(()))
    trainer.grad_scaler.update(initial / 4)
    resumed = train_loop(tmp_path, "float16")
    resumed.load_state_dict(trainer.state_dict())
    assert (resumed.iter, resumed.grad_scaler.get_scale()) == (7, initial / 4)


def test_scaled_gradients_are_clipped_at_their_own_size(tmp_path):
    norms = {}
    for precision in ("float32", "float16"):

        def note(optimizer, precision=precision) -> None:
            norms[precision] = optimizer.param_groups[0]["params"][0].grad.norm()

        trainer = train_loop(tmp_path, precision, clip=note)
        with EventStorage():
            trainer.run_step()
    assert trainer.grad_scaler.get_scale() > 1
    torch.testing.assert_close(norms["float16"], norms["float32"], rtol=1e-2, atol=0.0)


def test_a_loss_that_is_not_finite_changes_no_weight_whatever_trains(tmp_path):
    trainer = train_loop(tmp_path, "float32")
    trainer.model.bias.data[0] = math.inf
    before = trainer.model.weight.detach().clone()
    with (
        EventStorage(),
        pytest.raises(FloatingPointError, match=r"loss = inf\. Images: a.png, without a name"),
    ):
        trainer.run_step()
    assert torch.equal(trainer.model.weight, before)


def test_sync_bn_is_bn_on_one_device_under_the_same_names():
    """In the visual encoder, the pyramid and the head."""
    cfg = prepared_cfg(CONFIG, [])
    fitted, synced = Trainer.build_model(cfg), build_model(cfg)
    parts = [m for n, m in synced.named_modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(parts) > 30
    assert not [m for m in fitted.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert {k: v.shape for k, v in fitted.state_dict().items()} == {
        k: v.shape for k, v in synced.state_dict().items()
    }


def test_sync_bn_stays_on_several_gpus(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    cfg = load_config(CONFIG, [])
    cfg.MODEL.DEVICE = "cuda"
    assert resolve_sync_bn(cfg) == cfg
    cfg.MODEL.DEVICE = "cpu"
    fitted = resolve_sync_bn(cfg)
    norms = (fitted.MODEL.DENSECLIP.VISUAL.NORM, fitted.MODEL.FPN.NORM, fitted.MODEL.RETINANET.NORM)
    assert norms == ("BN", "BN", "BN")
    assert "statistics of the first process" in overrides_of(cfg, cfg)[-1]


def test_overrides_name_what_changes_the_result_and_nothing_else():
    recipe = load_config(CONFIG, [])
    checkpoints = ["SOLVER.BEST_METRIC", "bbox/AP", "SOLVER.MAX_TO_KEEP", "3"]
    neutral = load_config(CONFIG, ["OUTPUT_DIR", "x", "TEST.EVAL_PERIOD", "5", *checkpoints])
    assert overrides_of(recipe, neutral) == []
    changed = load_config(CONFIG, ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.AMP.ENABLED", "True"])
    assert sorted(overrides_of(recipe, changed)) == [
        "SOLVER.AMP.ENABLED: True instead of False",
        "SOLVER.IMS_PER_BATCH: 2 instead of 4",
        "learning rate for each image of the batch: 2 times the recipe's",
    ]


@pytest.mark.parametrize(
    "given, environment, message",
    [
        ({"num_machines": 2}, {}, "needs the same --dist-url tcp://ADDRESS:PORT"),
        ({"num_machines": 2, "machine_rank": 2}, {}, "counted from 0 to 1"),
        ({}, {"LOCAL_RANK": "0"}, "RANK, WORLD_SIZE, LOCAL_WORLD_SIZE not"),
        (
            {"num_gpus": 8},
            {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
            "torchrun has started them",
        ),
    ],
)
def test_launches_that_cannot_work_are_refused(monkeypatch, given, environment, message):
    for key in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=message):
        run(pytest.fail, Namespace(**{**ONE_PROCESS, **given}))


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    cfg = load_config(CONFIG, [])
    cfg.MODEL.DEVICE = "cuda:1"
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda:1' for 2 processes.* Set MODEL.DEVICE to"):
        Trainer(cfg)


def test_a_batch_that_the_references_processes_cannot_share_is_refused():
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", 3]
    with pytest.raises(
        ValueError,
        match=r"by 3 processes \(SOLVER.REFERENCE_WORLD_SIZE\). Set it to a multiple of 3",
    ):
        Trainer(load_config(CONFIG, opts))


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    with pytest.raises(ValueError, match="IMS_PER_BATCH = 4 images cannot be shared by 3 processes"):
        Trainer(load_config(CONFIG, []))


PAGES_OF_TEN_MAPS = """
import resource
import torch
from denseclip_d2.utils.memory import keep_freed_memory

keeps = keep_freed_memory()
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(keeps, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_is_kept_on_cpus_unless_the_environment_says_otherwise():
    """Measured by the pages that the system had to provide."""
    pages = {}
    for off in ({}, {"MALLOC_TRIM_THRESHOLD_": "131072"}):
        command = [sys.executable, "-W", "ignore", "-c", PAGES_OF_TEN_MAPS]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **off}
        done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
        keeps, faults = done.stdout.split()
        pages[keeps] = int(faults)
        if not off and keeps == "False":
            pytest.skip("this system's C library is not glibc")
    assert pages["True"] < pages["False"] / 4


def test_a_config_may_have_the_key_of_an_earlier_version(tmp_path):
    """MODEL.KEEP_MEMORY, of which the commands know nothing any more."""
    (tmp_path / "old.yaml").write_text(f"_BASE_: {CONFIG}\nMODEL:\n  KEEP_MEMORY: false\n")
    assert "KEEP_MEMORY" not in load_config(str(tmp_path / "old.yaml"), []).MODEL

"""What a launch, a config and a device make of one another, without starting processes."""

import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from configs import prepared
from denseclip_d2.builder import with_fitting_norms
from denseclip_d2.config import load_config
from denseclip_d2.engine import Trainer, run
from denseclip_d2.engine.precision import MixedPrecisionTrainer
from denseclip_d2.engine.summary import departures_from

CONFIG = str(Path(__file__).resolve().parents[1] / "configs/Shapes/denseclip_retinanet_tiny.yaml")
ONE_PROCESS = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}


def test_float16_on_a_cpu_is_refused():
    cfg = load_config(CONFIG, ["SOLVER.AMP.ENABLED", "True"])
    cfg.SOLVER.AMP.PRECISION, cfg.MODEL.DEVICE = "float16", "cpu"
    with pytest.raises(ValueError, match="Set SOLVER.AMP.PRECISION to bfloat16"):
        Trainer(cfg)


def test_a_run_goes_on_in_another_precision():
    """float32 -> float16 starts a new scaler, float16 -> float16 keeps the old one's scale."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    half = partial(MixedPrecisionTrainer, model, [], optimizer, precision="float16", device="cpu")
    trainer, before = half(), SimpleTrainer(model, [], optimizer)
    before.iter = trainer.iter = 7
    trainer.load_state_dict(before.state_dict())
    initial = trainer.grad_scaler.get_scale()
    trainer.grad_scaler.scale(torch.ones(()))
    trainer.grad_scaler.update(initial / 4)
    resumed = half()
    resumed.load_state_dict(trainer.state_dict())
    assert (resumed.iter, resumed.grad_scaler.get_scale()) == (7, initial / 4)


def test_sync_bn_is_bn_on_one_device_under_the_same_names():
    """In the visual encoder, the pyramid and the head."""
    cfg = prepared(CONFIG, [])
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
    assert with_fitting_norms(cfg) == cfg
    cfg.MODEL.DEVICE = "cpu"
    fitted = with_fitting_norms(cfg)
    norms = (fitted.MODEL.DENSECLIP.VISUAL.NORM, fitted.MODEL.FPN.NORM, fitted.MODEL.RETINANET.NORM)
    assert norms == ("BN", "BN", "BN")
    assert "statistics of the first process" in departures_from(cfg, cfg)[-1]


def test_departures_name_what_changes_the_result_and_nothing_else():
    recipe = load_config(CONFIG, [])
    assert departures_from(recipe, load_config(CONFIG, ["OUTPUT_DIR", "x", "TEST.EVAL_PERIOD", "5"])) == []
    changed = load_config(CONFIG, ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.AMP.ENABLED", "True"])
    assert sorted(departures_from(recipe, changed)) == [
        "SOLVER.AMP.ENABLED: True instead of False",
        "SOLVER.IMS_PER_BATCH: 2 instead of 4",
        "learning rate for each image of the batch: 2 times the recipe's",
    ]


@pytest.mark.parametrize(
    "given, environment, message",
    [
        ({"num_machines": 2}, {}, "needs --dist-url tcp://ADDRESS:PORT"),
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
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda:1' for 2 processes.* Set it to 'cuda'."):
        Trainer(cfg)


def test_a_batch_that_the_references_processes_cannot_share_is_refused():
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", 3]
    with pytest.raises(
        ValueError, match="cannot be shared by 3 processes, which .*: set it to a multiple of 3"
    ):
        Trainer(load_config(CONFIG, opts))


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    with pytest.raises(ValueError, match="IMS_PER_BATCH = 4 images cannot be shared by 3 processes"):
        Trainer(load_config(CONFIG, []))


PAGES_OF_TEN_MAPS = """
import resource, sys
import torch
from denseclip_d2.config import load_config
from denseclip_d2.engine import keep_memory

keeps = keep_memory(load_config(sys.argv[1], ["MODEL.DEVICE", "cpu", "MODEL.KEEP_MEMORY", sys.argv[2]]))
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(keeps, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_is_kept_on_cpus_unless_a_key_says_otherwise():
    """Counted in pages that the system had to give."""
    pages = {}
    for keep in ("True", "False"):
        command = [sys.executable, "-W", "ignore", "-c", PAGES_OF_TEN_MAPS, CONFIG, keep]
        keeps, faults = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
        pages[keep] = int(faults)
        if keep == "True" and keeps == "False":
            pytest.skip("this system's C library is not glibc")
        assert keeps == keep
    assert pages["True"] < pages["False"] / 4

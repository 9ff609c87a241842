"""``tools/doctor.py`` on machines of all kinds."""

import http.server
import importlib.metadata
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from test_engine import ROOT

from denseclip_d2.doctor import CheckResult, datasets, machine, software, weights
from denseclip_d2.model_zoo.zoo import ZooEntry

GIB = 2**30


class Hub(http.server.BaseHTTPRequestHandler):
    """Answer requests, and record them."""

    def do_HEAD(self):
        self.server.asked.append(self.command)
        self.send_response(200)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(serve):
    server = serve(Hub)
    server.asked = []
    return server


def run_doctor(home: Path, hub, *args) -> subprocess.CompletedProcess:
    environment = {
        **os.environ, "HOME": str(home), "DETECTRON2_DATASETS": str(home), "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "CUDA_VISIBLE_DEVICES": "",
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", "/tmp"),
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "tools/doctor.py", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


def test_a_machine_is_looked_at_and_left_as_it_is(small_shapes, tmp_path, hub):
    """The doctor reports faults with an exit status, and changes nothing."""
    before = sorted(tmp_path.rglob("*"))
    names = ("shapes_train", "shapes_sem_seg_val")
    done = run_doctor(tmp_path, hub, "--output", tmp_path / "runs", "--datasets", *names)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "ok     Python: 3.1", "ok     shapes_train: 8 images, all whole",
        "ok     shapes_sem_seg_val: 4 images",
        "ok     model zoo: all weights are whole", "can be reached", "note   CLIP: not in",
    ):  # fmt: skip
        assert line in done.stdout
    assert hub.asked == ["HEAD"]
    assert sorted(tmp_path.rglob("*")) == before
    image = tmp_path / "shapes/train/000000000002.png"
    image.write_bytes(image.read_bytes()[:500])
    done = run_doctor(tmp_path, hub, "--output", tmp_path / "runs", "--datasets", *names)
    assert done.returncode == 1
    file = tmp_path / "shapes/annotations/instances_train.json"
    assert f"wrong  shapes_train: 1 of 8 images of {file} cannot be used:" in done.stdout
    assert "000000000002.png is broken or truncated" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 wrong, ")


def test_without_the_package_the_way_to_it_is_said(tmp_path):
    (tmp_path / "detectron2.py").write_text("raise ImportError('no detectron2 here')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-W", "ignore", "tools/doctor.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "denseclip_d2 cannot be imported: denseclip_d2 needs Detectron2" in done.stderr
    assert "(no detectron2 here)" in done.stderr and "-> `make install`" in done.stderr


def test_datasets_that_are_asked_for_have_to_be_there(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    folder, found = datasets.check_datasets(["lvis_v1_val"])
    assert folder.state == found.state == "wrong"
    assert "no annotation file" in found.text and "DETECTRON2_DATASETS tells where" in found.text
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "_is_here", lambda name: False)
    folder, absent = datasets.check_datasets(None)
    assert folder.state == absent.state == "note"
    assert "not here: shapes_train, " in absent.text and "cityscapes_fine_sem_seg_val" in absent.text


def test_packages_are_compared_with_those_known_to_work(tmp_path, monkeypatch):
    pins = tmp_path / "requirements.txt"
    assert software.check_packages(pins).state == "note"
    torchs = importlib.metadata.version("torch").partition("+")[0]
    pins.write_text(f"# why\ntorch=={torchs}\n# Checks.\nnone-such==1\n")
    assert software.check_packages(pins) == CheckResult(
        "packages", "ok", "the 1 tested versions of requirements.txt"
    )
    pins.write_text(f"torch=={torchs}\niopath==0.0.1\n")
    found = software.check_packages(pins)
    assert found.state == "note" and found.text.endswith("tested is 0.0.1")
    pins.write_text("none-such==1\niopath==0.0.1\n")
    found = software.check_packages(pins)
    assert found.state == "wrong" and found.text.startswith("not installed: none-such\niopath is ")
    monkeypatch.setattr(software, "PYTHONS", ((2, 7),))
    assert software.check_python().state == "wrong"


def test_gpus_are_tried(monkeypatch):
    def told(**cuda) -> list[CheckResult]:
        for name, value in cuda.items():
            monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
        return list(machine.check_gpus())

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", "99.0")
    (found,) = told(is_available=False)
    assert found.state == "wrong" and "This torch is for CUDA 99.0" in found.fix
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [f.state for f in told(is_available=False)] == ["ok"]
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
    there = {"is_available": True, "device_count": 1, "get_device_name": "H"}
    assert [f.state for f in told(**there, mem_get_info=(8 * GIB, 9 * GIB))] == ["ok"]
    assert [f.state for f in told(**there, mem_get_info=(GIB, 9 * GIB))] == ["note"]

    def no_kernel(*size, device):
        raise RuntimeError("no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "ones", no_kernel)
    (found,) = told(**there)
    assert found.state == "wrong" and found.text.endswith(
        "no kernel image is available for execution on the device"
    )


def test_memory_is_a_containers_where_that_is_less(tmp_path):
    assert machine.available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 8388608 kB\n")
    assert machine.available_memory(tmp_path) == 8 * GIB
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text(f"{GIB}\n")
    for limit, available in (("max", 8), (4 * GIB, 3), (GIB // 2, 0)):
        (group / "memory.max").write_text(f"{limit}\n")
        assert machine.available_memory(tmp_path) == available * GIB


@pytest.mark.parametrize("free, state", [(0.5, "wrong"), (5, "note"), (50, "ok")])
def test_the_disk_has_to_hold_checkpoints(tmp_path, monkeypatch, free, state):
    usage = namedtuple("Usage", "free")(int(free * GIB))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    assert machine.check_disk(tmp_path / "not/there/yet").state == state
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").touch()
    assert machine.check_disk(tmp_path / "file/x").text.endswith("cannot be written")
    (shared,) = [found for found in machine.check_memory() if found.about == "shared memory"]
    assert shared.state == ("note" if free < 1 else "ok")


def test_a_hub_that_cannot_be_reached_is_noted(monkeypatch, hub):
    monkeypatch.setattr(weights.constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    assert weights.check_network().state == "ok"
    monkeypatch.setattr(weights.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached: " in weights.check_network().text
    monkeypatch.setattr(weights.constants, "HF_HUB_OFFLINE", True)
    assert "nothing is downloaded" in weights.check_network().text


def test_weights_that_are_cut_do_not_count(monkeypatch, tmp_path):
    (tmp_path / "zoo.safetensors").write_bytes(b"cut")
    entry = ZooEntry(str(tmp_path / "zoo.safetensors"), "0" * 64)
    monkeypatch.setattr(weights, "zoo_index", lambda: {"zoo": entry})
    found = weights.check_zoo()
    assert found.state == "wrong" and "zoo.safetensors" in found.text and "git checkout" in found.fix
    monkeypatch.setenv("HOME", str(tmp_path))
    clip = tmp_path / ".cache/clip/RN50.pt"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"weights")
    entry = {"url": f"http://host/{weights.sha256(str(clip))}/RN50.pt", "hf_hub": "none/such/"}
    monkeypatch.setattr(weights, "get_pretrained_cfg", lambda *name: entry)
    assert weights.check_clip_weights().state == "ok"
    clip.write_bytes(b"weig")
    assert weights.check_clip_weights().state == "note"

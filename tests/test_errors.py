"""Errors that a person can fix end in one line in every tool and process. Bugs keep their traceback."""

import json
import os
import re
import runpy
import subprocess
import sys
import traceback
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader, Dataset

from denseclip_d2.builder import build_model
from denseclip_d2.config import load_config
from denseclip_d2.data.checks import check_registered
from denseclip_d2.engine import run
from denseclip_d2.engine.errors import format_error, one_line_errors
from denseclip_d2.utils.text import read_text

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"
SEMANTIC = "configs/Shapes/denseclip_semantic_fpn_tiny.yaml"


def refused():
    check_registered("nowhere")


def bug():
    read_text("\0")  # Python's open() raises ValueError


def wrong_size():
    raise SizeMismatchError("Mismatched image shape for image a.png")


def no_memory():
    raise RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 TB"
    )


def full_disk():
    raise OSError(28, "No space left on device", "a.pth")


KNOWN = [
    (refused, "DATASETS names 'nowhere', which is not registered"),
    (wrong_size, "Mismatched image shape for image a.png"),
    (no_memory, "Out of memory: .* you tried to allocate 4 TB Lower SOLVER.IMS_PER_BATCH"),
    (full_disk, "No space left on device: 'a.pth'"),
]
BUGS = [bug, lambda: {}["a"], lambda: [][0], lambda: torch.zeros(2) @ torch.zeros(3)]


def raised_by(function) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


class Calls(Dataset):
    """A dataset with one item, which is a function call."""

    def __init__(self, function):
        self.function = function

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        return self.function()


def load(function) -> None:
    next(iter(DataLoader(Calls(function), num_workers=1)))


def in_a_worker(function) -> Exception:
    """Return the error as torch's loader raises it from a worker."""
    return raised_by(lambda: load(function))


def in_a_process(function) -> Exception:
    """Return the error as ``torch.multiprocessing``, by Detectron2's launcher, raises it from a process."""
    error = raised_by(function)
    text = "".join(traceback.format_exception(error))
    return ProcessRaisedException(f"\n\n-- Process 1 terminated with the following error:\n{text}", 1, 2)


@pytest.mark.parametrize("seen", [raised_by, in_a_process])
@pytest.mark.parametrize(("function", "words"), KNOWN, ids=lambda x: getattr(x, "__name__", ""))
def test_what_a_person_can_mend_has_a_line(function, words, seen):
    line = format_error(seen(function))
    assert re.search(words, line), line
    assert "Traceback" not in line and "\n" not in line


@pytest.mark.parametrize("seen", [raised_by, in_a_process])
@pytest.mark.parametrize("function", BUGS)
def test_what_may_be_a_bug_has_none(function, seen):
    assert format_error(seen(function)) == ""


def test_a_loaders_worker_and_one_of_several_processes():
    assert format_error(in_a_worker(bug)) == ""
    assert format_error(in_a_process(lambda: load(refused))).startswith("DATASETS names 'nowhere'")


def test_a_program_ends_in_the_line_or_in_the_traceback():
    with pytest.raises(SystemExit, match="^error: DATASETS names 'nowhere'"), one_line_errors():
        refused()
    with pytest.raises(ValueError, match="null"), one_line_errors():
        bug()


def test_torchrun_is_told_the_line(tmp_path, monkeypatch):
    for key in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(ValueError, match="LOCAL_RANK is set"):
        run(pytest.fail, Namespace(num_gpus=1, num_machines=1))
    told = json.loads((tmp_path / "error.json").read_text(encoding="utf-8"))["message"]["extraInfo"]
    assert told["py_callstack"].startswith("error: LOCAL_RANK is set but RANK, ")


@pytest.fixture
def rooms(tmp_path, catalogs):
    """Write label images for semantic segmentation. One has a label without a class."""
    root = tmp_path / "rooms"
    for i in range(4):
        for kind, image in (("images", np.zeros((64, 96, 3), "u1")), ("labels", np.full((64, 96), i, "u1"))):
            (root / kind / "train").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / kind / "train" / f"{i}.png")
    (root / "classes.txt").write_text("grüne Wand\nfloor\nceiling\n", encoding="utf-8-sig")
    return root


def train_net(monkeypatch, *args) -> None:
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", SEMANTIC, *map(str, args)])
    runpy.run_path(str(ROOT / "tools/train_net.py"), run_name="__main__")


def test_a_fault_of_the_data_in_mid_training_ends_in_its_line(rooms, tmp_path, monkeypatch, capfd):
    """A worker of the loader raises the error. The traceback is in the log."""
    options = {
        "DATASETS.CHECK_IMAGES": False, "DATASETS.CUSTOM.VAL_FRACTION": 0, "DATALOADER.NUM_WORKERS": 1,
        "SOLVER.MAX_ITER": 4, "SOLVER.IMS_PER_BATCH": 2, "OUTPUT_DIR": tmp_path / "out",
    }  # fmt: skip
    with pytest.raises(SystemExit, match="^error: .*3.png has labels out of range: 3. With 3 classes"):
        train_net(monkeypatch, "--train-semantic", rooms, *(x for pair in options.items() for x in pair))
    said = "".join(capfd.readouterr())
    assert "Starting training from iteration 0" in said
    assert "Traceback" not in said
    assert "Original Traceback" in (tmp_path / "out/log.txt").read_text(encoding="utf-8")


def test_a_locale_that_is_not_utf_8(rooms, tmp_path):
    """A config in UTF-16 and names that are not ASCII are read, used in training and logged."""
    (rooms / "labels/train/3.png").unlink()
    config = tmp_path / "config.yaml"
    config.write_text(f'# Übung\n_BASE_: "{ROOT / SEMANTIC}"\nSEED: 1\n', encoding="utf-16")
    options = {
        "DATASETS.CUSTOM.VAL_FRACTION": 0.4, "DATALOADER.NUM_WORKERS": 0, "TEST.REPORT": False,
        "SOLVER.MAX_ITER": 1, "SOLVER.IMS_PER_BATCH": 2, "OUTPUT_DIR": tmp_path / "out",
    }  # fmt: skip
    command = ["tools/train_net.py", "--config-file", config, "--train-semantic", rooms]
    command += [x for pair in options.items() for x in pair]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **locale},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stdout + done.stderr
    log = (tmp_path / "out/log.txt").read_text(encoding="utf-8")
    assert "# Übung" in log and "IoU-grüne Wand" in log


@pytest.mark.parametrize("key", ["MODEL.DENSECLIP.CONTEXT_DECODER.WIDTH", "MODEL.FPN.OUT_CHANNELS"])
def test_a_model_that_is_larger_than_the_memory_is_not_begun(key, monkeypatch):
    """The available memory is replaced by 1 GiB, which is safe."""
    monkeypatch.setattr("denseclip_d2.builder.available_memory", lambda: 2**30)
    before = torch.get_rng_state()
    with pytest.raises(MemoryError, match=rf"and 1.0 GiB .* defaults: {key} is 10000\.$"):
        build_model(load_config(CONFIG, [key, 10000]))
    assert torch.equal(torch.get_rng_state(), before)
    build_model(load_config(CONFIG, [key, 8]))

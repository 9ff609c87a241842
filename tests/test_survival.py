import io
import json
import math
import multiprocessing
import random
import re
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import TrainingSampler
from detectron2.utils.env import seed_all_rng

from denseclip_d2.checkpoint import DenseCLIPCheckpointer
from denseclip_d2.config import load_config
from denseclip_d2.data.train_loader import TrainLoader
from denseclip_d2.engine import Trainer
from denseclip_d2.guidance import pixel_text_loss

CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"


def make_config(small_shapes, output: Path, *opts):
    """Return a config of six iterations on eight images of all shapes with random flips and sizes."""
    _, train, val = small_shapes
    values = {
        "DATASETS.TRAIN": f"('{train}',)", "DATASETS.TEST": f"('{val}',)", "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.MAX_ITER": 6, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.STEPS": "(3,)", "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.CHECKPOINT_PERIOD": 2, "INPUT.MIN_SIZE_TRAIN": "(64, 80)", "OUTPUT_DIR": output, "SEED": 5,
    }  # fmt: skip
    return load_config(CONFIG, [str(x) for pair in values.items() for x in pair] + [str(x) for x in opts])


@pytest.fixture
def config(small_shapes, tmp_path):
    return make_config(small_shapes, tmp_path / "output")


def run(cfg, resume: bool = False, seed: int = 5, test=lambda *args: {}) -> Trainer:
    """Train like ``tools/train_net.py`` without the evaluation."""
    seed_all_rng(seed)
    trainer = Trainer(cfg)
    trainer.test = test
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def checkpoint(cfg, name: str) -> dict:
    return torch.load(Path(cfg.OUTPUT_DIR, name), weights_only=True)


def assert_same(a, b, where: str = "checkpoint") -> None:
    """Assert that nested dicts and lists are bit-equal."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    else:
        assert a == b, where


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(config):
    """Weights, optimizer, schedule, moving averages, data order, augmentation, dropout, random numbers."""
    run(config)
    whole = checkpoint(config, "model_final.pth")
    Path(config.OUTPUT_DIR, "last_checkpoint").write_text("model_0000001.pth")
    Path(config.OUTPUT_DIR, "model_final.pth").unlink()
    resumed = run(config, resume=True, seed=99)  # the seed of a resumed run does not matter
    assert resumed.start_iter == 2
    assert_same(whole, checkpoint(config, "model_final.pth"))


def test_a_run_killed_between_its_last_two_checkpoints_still_gets_the_final_one(config):
    run(config)
    whole = checkpoint(config, "model_final.pth")
    Path(config.OUTPUT_DIR, "model_final.pth").unlink()
    Path(config.OUTPUT_DIR, "last_checkpoint").write_text("model_0000005.pth")
    run(config, resume=True)
    final = checkpoint(config, "model_final.pth")
    assert final.keys() == whole.keys()
    assert_same(whole["model"], final["model"])
    assert final["iteration"] == whole["iteration"] == 5


def fake_loader(num_workers: int, grouping: bool = True, batch: int = 3, length: int = 11) -> TrainLoader:
    records = [{"id": i, "width": 4 + i % 3, "height": 5} for i in range(length)]

    def mapper(record: dict) -> dict:
        return {**record, "drawn": (np.random.rand(), random.random(), torch.rand(()).item())}  # noqa: NPY002

    return TrainLoader(
        records, mapper=mapper, sampler=TrainingSampler(length), total_batch_size=batch,
        aspect_ratio_grouping=grouping, num_workers=num_workers,
    )  # fmt: skip


def batches(loader: TrainLoader, count: int) -> list:
    return [[(x["id"], x["drawn"]) for x in batch] for batch in islice(loader, count)]


@pytest.mark.parametrize("grouping", [True, False])
def test_the_loader_goes_on_where_it_was(grouping):
    """The same images with the same augmentation for any number of workers, even after two interruptions."""
    seed_all_rng(1)
    before = torch.get_rng_state()
    loader = fake_loader(0, grouping)
    whole = batches(loader, 12)
    assert torch.equal(torch.get_rng_state(), before)
    for done, workers in ((0, 0), (1, 0), (4, 2), (7, 0), (8, 2)):
        seed_all_rng(2)
        stopped = fake_loader(0, grouping)
        stopped.load_state_dict({**loader.state_dict(), "images": 3 * done})
        assert batches(stopped, 2) == whole[done : done + 2]
        resumed = fake_loader(workers, grouping)
        resumed.load_state_dict(stopped.state_dict())
        assert batches(resumed, 2) == whole[done + 2 : done + 4]
    drawn = [x[1] for batch in whole for x in batch]
    assert len(set(drawn)) == len(drawn)


def test_a_loader_of_another_batch_goes_on_after_as_many_images_and_says_so(caplog):
    loader = fake_loader(0, grouping=False, batch=3)
    batches(loader, 4)
    resumed = fake_loader(0, grouping=False, batch=2)
    resumed.load_state_dict(loader.state_dict())
    assert "total_batch_size was 3, is 2. Resuming after 12 images" in caplog.text
    following = [x for batch in batches(resumed, 3) for x in batch]
    loader.load_state_dict({**loader.state_dict(), "images": 12})
    assert following == [x for batch in batches(loader, 2) for x in batch]


class Half:
    """Replaces ``torch.save``: write half of the file, then call a function."""

    def __init__(self, then, on_call: int = 1):
        self.then, self.left, self.save = then, on_call, torch.save

    def __call__(self, data, file):
        self.left -= 1
        if self.left:
            return self.save(data, file)
        content = io.BytesIO()
        self.save(data, content)
        file.write(content.getvalue()[: content.tell() // 2])
        file.flush()
        return self.then()


def fail():
    raise OSError("No space left on device")


def loadable(directory: Path) -> int:
    """Return the iteration of the checkpoint in ``last_checkpoint``, or -1 without a checkpoint."""
    last = directory / "last_checkpoint"
    return torch.load(directory / last.read_text(), weights_only=True)["iteration"] if last.exists() else -1


def test_last_checkpoint_never_names_a_broken_file(tmp_path, monkeypatch):
    """If writing a checkpoint or its name fails, the checkpoint before stays, and no partial file does."""
    checkpointer = DenseCLIPCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(torch, "save", Half(fail))
        checkpointer.save("model_0000002", iteration=2)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(torch, "save", Half(fail))
        checkpointer.save("model_0000001", iteration=3)  # over a complete file
    assert loadable(tmp_path) == 1
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(checkpointer, "tag_last_checkpoint", lambda name: fail())
        checkpointer.save("model_0000004", iteration=4)
    assert loadable(tmp_path) == 1
    (tmp_path / ".model_0000003.pth.partial").write_bytes(b"of a killed run")
    assert checkpointer.get_checkpoint_file().endswith("model_0000001.pth")
    assert all(".partial" not in file for file in checkpointer.get_all_checkpoint_files())
    checkpointer.save("model_0000005", iteration=5)
    assert loadable(tmp_path) == 5
    assert not list(tmp_path.glob(".*"))


def test_last_checkpoint_itself_is_written_whole(tmp_path):
    checkpointer = DenseCLIPCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    writing = checkpointer.path_manager.open(str(tmp_path / "last_checkpoint"), "w")
    with pytest.raises(OSError, match="No space"), writing as file:
        file.write("model_00")
        fail()
    assert loadable(tmp_path) == 1


@pytest.mark.parametrize("values", [(math.nan, 1.0), (1.0, math.inf), (math.inf, -math.inf)])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, values):
    model = torch.nn.Linear(2, 2)
    checkpointer = DenseCLIPCheckpointer(model, str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    model.bias.data = torch.tensor(values)
    with pytest.raises(FloatingPointError, match=r"not finite: bias\. .*model_0000001\.pth"):
        checkpointer.save("model_0000002", iteration=2)
    assert [x.name for x in tmp_path.glob("*.pth")] == ["model_0000001.pth"]


def test_weights_whose_sum_is_too_great_are_saved(tmp_path):
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, 3e38)
    DenseCLIPCheckpointer(model, str(tmp_path)).save("model_0000001")
    assert (tmp_path / "model_0000001.pth").exists()


def parameters(model) -> dict:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_images(config, monkeypatch):
    calls = []

    def loss(*args):
        calls.append(args)
        return pixel_text_loss(*args) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr("denseclip_d2.meta_arch.pixel_text.pixel_text_loss", loss)
    config.SOLVER.CHECKPOINT_PERIOD = 3
    seed_all_rng(5)
    trainer = Trainer(config)
    with pytest.raises(FloatingPointError) as stopped:
        trainer.train()
    assert re.search(r"not finite at iteration 3: .*loss_pixel_text = nan.* Images: ", str(stopped.value))
    assert re.search(r"train/0{11}\d\.png, /.*train/0{11}\d\.png\.", str(stopped.value))
    assert "last good checkpoint is " + str(Path(config.OUTPUT_DIR, "model_0000002.pth")) in str(
        stopped.value
    )
    assert "lower SOLVER.BASE_LR and continue from it with --resume" in str(stopped.value)
    saved = checkpoint(config, "model_0000002.pth")["model"]
    assert loadable(Path(config.OUTPUT_DIR)) == 2
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, saved[name]), name


def scores(*values: float):
    """Replace evaluation by a list of APs."""
    found = iter(values)
    return lambda *args: {"bbox": {"AP": next(found)}}


def best(cfg) -> tuple[float, int]:
    return tuple(
        json.loads(Path(cfg.OUTPUT_DIR, "model_best.json").read_text())[k] for k in ("score", "iteration")
    )


def test_the_best_score_survives_a_resume(config):
    """The score of an evaluation during training or of the last one. Only better scores replace it."""
    config.TEST.EVAL_PERIOD, config.SOLVER.BEST_METRIC, config.SOLVER.MAX_ITER = 2, "bbox/AP", 4
    run(config, test=scores(10, 30))
    assert best(config) == (30, 4)
    kept = Path(config.OUTPUT_DIR, "model_best.pth").read_bytes()
    config.SOLVER.MAX_ITER = 6
    run(config, resume=True, test=scores(20))
    assert best(config) == (30, 4)
    assert Path(config.OUTPUT_DIR, "model_best.pth").read_bytes() == kept
    assert loadable(Path(config.OUTPUT_DIR)) == 5
    config.SOLVER.MAX_ITER = 8
    trainer = run(config, resume=True, test=scores(40))
    assert best(config) == (40, 8)
    assert_same(dict(trainer.model.state_dict()), dict(checkpoint(config, "model_best.pth")["model"]))


def test_only_the_newest_checkpoints_of_the_run_are_kept(config):
    """model_final and other files stay. Old checkpoints are deleted even after a kill before the deletion."""
    output = Path(config.OUTPUT_DIR)
    output.mkdir()
    others = ["model_9999999.pth", "model_final.pth"]
    (output / others[0]).touch()
    config.SOLVER.CHECKPOINT_PERIOD, config.SOLVER.MAX_TO_KEEP, config.SOLVER.MAX_ITER = 1, 2, 4

    def kept() -> set[str]:
        return {path.name for path in output.glob("*.pth")}

    run(config)
    assert kept() == {"model_0000002.pth", "model_0000003.pth", *others}
    (output / "last_checkpoint").write_text("model_0000003.pth")
    (output / "model_0000001.pth").touch()
    config.SOLVER.MAX_ITER = 5
    run(config, resume=True)
    assert kept() == {"model_0000003.pth", "model_0000004.pth", *others}


def test_a_failing_evaluation_loses_no_iteration(config):
    config.TEST.EVAL_PERIOD, config.SOLVER.CHECKPOINT_PERIOD = 2, 100
    with pytest.raises(ValueError, match="no evaluation"):
        run(config, test=lambda *args: (_ for _ in ()).throw(ValueError("no evaluation")))
    assert loadable(Path(config.OUTPUT_DIR)) == 1


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            ("SOLVER.MAX_TO_KEEP", -1),
            "MAX_TO_KEEP is -1; it has to be a whole number of at least 0",
        ),
        (
            ("SOLVER.BEST_METRIC", "bbox/AP", "DATASETS.TEST", "()"),
            "BEST_METRIC is 'bbox/AP', but DATASETS.TEST is",
        ),
    ],
)
def test_impossible_settings_are_refused(small_shapes, tmp_path, opts, message):
    with pytest.raises(ValueError, match=message):
        Trainer(make_config(small_shapes, tmp_path, *opts))


def train_in_child(cfg, root: Path, train: str, val: str, hang_at_save: int) -> None:
    torch.set_num_threads(1)
    for name, split in ((train, "train"), (val, "val")):
        register_coco_instances(name, {}, f"{root}/annotations/instances_{split}.json", f"{root}/{split}")

    def hang():
        Path(cfg.OUTPUT_DIR, "hanging").touch()
        time.sleep(600)

    torch.save = Half(hang, hang_at_save) if hang_at_save else torch.save
    run(cfg, resume=True)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(small_shapes, tmp_path):
    """SIGKILL at random moments and in the middle of a checkpoint. Each run is a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["denseclip_d2.engine"])

    def start(output: Path, hang_at_save: int = 0):
        opts = ("SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.MAX_TO_KEEP", 2)
        cfg = make_config(small_shapes, output, *opts)
        child = context.Process(target=train_in_child, args=(cfg, *small_shapes, hang_at_save))
        child.start()
        return child

    empty = context.Process(target=int)  # starts the server, so that its imports are not measured
    empty.start()
    empty.join()
    begin = time.monotonic()
    start(tmp_path / "whole").join()
    duration = time.monotonic() - begin
    output, moments, reached = tmp_path / "killed", random.Random(7), -1
    hanging = output / "hanging"
    for hang_at_save in (2, 1, 0, 0, 0):  # random kills last, because they may come after the end
        child = start(output, hang_at_save)
        if hang_at_save:
            while not hanging.exists() and child.is_alive():
                time.sleep(0.01)
            assert hanging.exists()
        else:
            child.join(moments.uniform(0.3, 0.7) * duration)
        child.kill()
        child.join()
        if hang_at_save:
            hanging.unlink()
            assert list(output.glob(".model_*.pth.partial"))
            assert loadable(output) == reached + hang_at_save - 1
        assert loadable(output) >= reached
        reached = loadable(output)
    child = start(output)
    child.join()
    assert child.exitcode == 0
    assert not list(output.glob(".*"))
    whole, killed = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("whole", "killed")
    )
    assert_same(whole, killed)

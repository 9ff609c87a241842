import json
import runpy
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from detectron2.utils.file_io import PathManager
from open_clip.loss import ClipLoss

from denseclip_d2.builder import build_model_with_weights
from denseclip_d2.config import load_config
from denseclip_d2.data.caption_table import CaptionTable
from denseclip_d2.pretraining import Recipe, SharedCaptionLoss, pretrain
from denseclip_d2.pretraining.evaluation import retrieval_at_1
from denseclip_d2.pretraining.muon import Muon
from denseclip_d2.pretraining.trainer import _order
from denseclip_d2.shapes.captions import ImageCaptionPairs, write_pairs

ROOT = Path(__file__).parents[1]
SHIPPED = "denseclip://Shapes/clip_tiny"
TINY = Recipe(
    model="RN-shapes-quickgelu",
    steps=4,
    batch_size=4,
    group_size=2,
    warmup=1,
    period=2,
    num_evaluated=2,
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs") / "pairs"
    write_pairs(ImageCaptionPairs(8, seed=0), root)
    return CaptionTable(root / "captions.tsv")


def run_tool(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["pretrain_clip.py", *map(str, argv)])
    runpy.run_path(str(ROOT / "tools" / "pretrain_clip.py"), run_name="__main__")


def test_the_loss_is_open_clips_where_captions_differ_and_forgives_equal_ones():
    images, texts = (F.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    scale, ids = torch.tensor(10.0), torch.arange(10).reshape(5, 2)
    torch.testing.assert_close(
        SharedCaptionLoss()(images, texts, scale, ids), ClipLoss()(images, texts, scale)
    )
    twins = F.normalize(torch.eye(8)[[0, 0, 1, 2, 3]], dim=-1)
    ids[1] = ids[0]
    least = SharedCaptionLoss()(twins, twins, torch.tensor(100.0), ids)
    torch.testing.assert_close(least, torch.tensor(2 * 2**-1 * 2 / 5 * 0.6931472))  # ln 2 for two of five


def test_captions_that_differ_can_be_kept_apart():
    """open_clip's loss of texts with themselves. Equal captions are correct answers."""
    images, texts = (F.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    scale, ids = torch.tensor(10.0, requires_grad=True), torch.arange(4)[:, None]
    added = SharedCaptionLoss(0.5)(images, texts, scale, ids) - SharedCaptionLoss()(images, texts, scale, ids)
    torch.testing.assert_close(added, 0.5 * ClipLoss()(texts, texts, scale.detach()))
    assert torch.autograd.grad(added, scale)[0].abs() < 1e-6  # the images decide this


def test_muon_takes_a_kernel_as_a_matrix():
    kernel = torch.nn.Parameter(torch.randn(6, 4, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn(6, 4, 3, 3)
    matrix.grad = kernel.grad.flatten(1).clone()
    idle = torch.nn.Parameter(torch.ones(2, 2))
    Muon([kernel, idle], lr=0.1).step()
    torch.optim.Muon([matrix], lr=0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)
    assert torch.equal(idle, torch.ones(2, 2))


def test_retrieval_counts_equal_captions_as_right():
    images = torch.eye(3)
    texts = torch.eye(3)[[1, 0, 0]]
    assert retrieval_at_1(images, torch.eye(3), ["a", "b", "c"])["image_to_text_r1"] == 1
    right = retrieval_at_1(images, texts, ["a", "a", "c"])
    assert right["image_to_text_r1"] == pytest.approx(2 / 3)
    assert right["text_to_image_r1"] == pytest.approx(2 / 3)


def test_training_learns_its_pairs(table, tmp_path):
    recipe = replace(TINY, steps=16, batch_size=8, period=1, num_evaluated=1)
    pretrain(recipe, table, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert len(losses) == 16
    assert sum(losses[-3:]) / 3 < 0.8 * losses[0]


def test_neighbors_stay_together_and_every_epoch_has_another_order():
    recipe = replace(TINY, steps=20, batch_size=8, group_size=4)
    batches = [[pair for _, pair in batch] for batch in _order(recipe, 42, 0)]
    for epoch in (batches[:5], batches[5:10]):
        assert sorted(sum(epoch, [])) == list(range(40))
    assert batches[:5] != batches[5:10]
    assert all(batch[i] + 3 == batch[i + 3] and batch[i] % 4 == 0 for batch in batches for i in (0, 4))
    single = [pair for _, pair in next(_order(replace(recipe, group_size=1), 42, 0))]
    assert any(a + 1 != b for a, b in pairwise(single[:4]))
    assert [*_order(recipe, 42, 7)] == [*_order(recipe, 42, 0)][7:]  # as at the start of a resumed run


def test_a_resumed_run_ends_as_one_that_was_not_killed(table, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = torch.load(pretrain(TINY, table, whole), weights_only=True)
    calls, forward = [], SharedCaptionLoss.forward

    def dies(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(*args)

    with monkeypatch.context() as patch:
        patch.setattr(SharedCaptionLoss, "forward", dies)
        with pytest.raises(KeyboardInterrupt):
            pretrain(TINY, table, killed)
    assert not (killed / "clip.pt").exists()
    with pytest.raises(FileExistsError, match="--resume"):
        pretrain(TINY, table, killed)
    with pytest.raises(ValueError, match="batch_size = 4"):
        pretrain(replace(TINY, batch_size=2), table, killed, resume=True)
    found = torch.load(pretrain(TINY, table, killed, resume=True), weights_only=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert (killed / "metrics.json").read_text() == (whole / "metrics.json").read_text()


def test_open_clip_and_a_detector_take_what_is_written(table, tmp_path, monkeypatch):
    path = pretrain(replace(TINY, steps=1), table, tmp_path)
    clip = open_clip.create_model(TINY.model, pretrained=str(path))
    cfg = load_config(
        str(ROOT / "configs/Shapes/denseclip_semantic_fpn_tiny.yaml"),
        ["MODEL.WEIGHTS", str(path), "MODEL.DEVICE", "cpu", "MODEL.DENSECLIP.CLIP_MODEL", TINY.model],
    )
    visual = build_model_with_weights(cfg, for_training=True).backbone.visual
    state = visual.state_dict()
    for name, tensor in clip.visual.state_dict().items():
        assert torch.equal(state[name], tensor), name
    rounded = open_clip.create_model(TINY.model, pretrained=str(tmp_path / "clip.safetensors"))
    torch.testing.assert_close(rounded.state_dict(), clip.state_dict(), atol=1e-3, rtol=1e-3)
    run_tool(
        monkeypatch, "--eval-only", "--model", TINY.model, "--weights", path, "--seed", 5, "--images", 3,
        "--json", tmp_path / "knows.json",
    )  # fmt: skip
    figures = json.loads((tmp_path / "knows.json").read_text())
    assert figures["images"] == 3
    assert all(0 <= figures[k] <= 1 for k in ("dense_accuracy", "image_to_text_r1", "text_to_image_r1"))


def test_the_shipped_clip_knows_its_words(tmp_path, monkeypatch):
    """On ten unseen images, without any training labels."""
    run_tool(
        monkeypatch, "--eval-only", "--weights", SHIPPED, "--seed", 12345, "--images", 10,
        "--json", tmp_path / "knows.json",
    )  # fmt: skip
    figures = json.loads((tmp_path / "knows.json").read_text())
    assert figures["images"] == 10
    assert figures["dense_accuracy"] > 0.7
    assert figures["image_to_text_r1"] > 0.7
    assert figures["text_to_image_r1"] > 0.7


def test_models_begin_from_the_shipped_clip():
    clip = open_clip.create_model("RN-shapes-quickgelu", pretrained=PathManager.get_local_path(SHIPPED))
    cfg = load_config(str(ROOT / "configs/Shapes/denseclip_retinanet_tiny.yaml"), ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.WEIGHTS == SHIPPED
    state = build_model_with_weights(cfg, for_training=True).backbone.visual.state_dict()
    for name, tensor in clip.visual.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_a_vit_is_evaluated_as_well(table, tmp_path):
    pretrain(replace(TINY, model="ViT-tiny-quickgelu", steps=1), table, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["dense_accuracy"] <= 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filepath,title\na.png,a\n", "no column 'filepath'"),
        ("filepath\ttitle\n", "no rows"),
        ("filepath\ttitle\na.png\t\n", "no caption beside a.png"),
        ("filepath\ttitle\na.png\ta star\n", "1 images of 1 that are missing"),
        ("\0", "has zero bytes"),
    ],
)
def test_a_bad_table_is_refused_by_name(content, message, tmp_path):
    path = tmp_path / "captions.tsv"
    path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        CaptionTable(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "RN-huge"], "--model = 'RN-huge' is not an architecture"),
        (["--model", "coca_ViT-B-32"], "is a CoCa"),
        (["--pairs", "nowhere.tsv"], "no such table"),
        (["--steps", "0"], "steps = 0"),
        (["--hard-negative-group-size", "3"], "batch_size = 4 is no multiple of group_size = 3"),
        (["--images", "0"], "0 images to evaluate on"),
        (["--learning-rate", "nan"], "learning_rate = nan"),
        (["--muon-lr", "-1"], "muon_lr = -1.0"),
        (["--text-uniformity-weight", "nan"], "uniformity_weight = nan"),
        (["--batch-size", "64"], "8 pairs are fewer than a batch of 64"),
    ],
)
def test_a_bad_command_ends_before_the_first_step(options, message, table, tmp_path, monkeypatch):
    pairs = ["--pairs", table.rows[0][0].parents[1] / "captions.tsv"]
    with pytest.raises(SystemExit, match=message):
        run_tool(
            monkeypatch,
            "--output",
            tmp_path / "out",
            *pairs,
            "--batch-size",
            4,
            "--hard-negative-group-size",
            2,
            *options,
        )
    assert not [*(tmp_path / "out").glob("*")]

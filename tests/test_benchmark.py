import json
import runpy
from functools import partialmethod
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import needs_a_compiler
from detectron2.modeling.meta_arch import RetinaNet
from test_export_model import needs_onnx
from torch import nn
from torch._dynamo.testing import CompileCounter

from denseclip_d2.benchmark import runtimes
from denseclip_d2.benchmark.detectors import Candidate, candidate_configs, class_names, random_input
from denseclip_d2.benchmark.kernels import KERNELS
from denseclip_d2.benchmark.measure import compare, interleaved, peak_memory
from denseclip_d2.config import load_config
from denseclip_d2.language.prompts import check_class_names
from denseclip_d2.meta_arch import DenseCLIPMaskRCNN, DenseCLIPRetinaNet, RetinaNetGlobalNorm
from denseclip_d2.visual.clip_resnet import CLIPResNet

ROOT = Path(__file__).resolve().parents[1]
RETINANET, MASK_RCNN = (
    str(ROOT / "configs/Shapes" / f"denseclip_{name}_tiny.yaml") for name in ("retinanet", "mask_rcnn")
)
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
CPU = torch.device("cpu")


def run_tool(monkeypatch, *args, small=SMALL) -> None:
    monkeypatch.setattr("sys.argv", ["benchmark.py", *map(str, args), *map(str, small)])
    runpy.run_path(str(ROOT / "tools/benchmark.py"), run_name="__main__")


def test_the_tool_prints_and_writes_every_candidate_of_every_case(tmp_path, monkeypatch, capsys):
    out = tmp_path / "new/report.json"
    run_tool(
        monkeypatch, "--config-file", MASK_RCNN, "--classes", 5, 7, "--sizes", "64x96", "--repeats", 1,
        "--batch-size", 2, "--json", out,
    )  # fmt: skip
    report = json.loads(out.read_text())
    rows = {(row["section"], row["case"], row["name"]): row for row in report["rows"]}
    cases = ["64 x 96, K = 5", "64 x 96, K = 7"]
    expected = {
        (f"{kernel}, {direction}", case, name)
        for kernel in KERNELS for direction in ("forward", "forward and backward") for case in cases
        for name in ("definition", "kernel")
    } | {
        (section, case, name)
        for section in ("inference", "training") for case in cases
        for name in ("CLIP", "DenseCLIP", "Detectron2 R18")
    } | {
        ("options", case, name) for case in cases
        for name in ("as trained", "by default", "and in bfloat16")
    } | {
        (f"visual encoder, {direction}", case, "without windows")
        for direction in ("forward", "forward and backward") for case in ("64 x 96",)
    }  # fmt: skip
    assert expected <= set(rows) and len(rows) == len(report["rows"]) == len(expected)
    for row in rows.values():
        assert row["milliseconds"] > 0 and row["megabytes"] > 0
        assert row["ratio_range"][0] <= row["ratio"] <= row["ratio_range"][1]
        if row["name"] in ("CLIP", "definition", "without windows"):
            assert row["ratio"] == row["memory_ratio"] == 1
    printed = capsys.readouterr().out
    assert all(case in printed for case in cases) and report["date"] in printed


def test_detectors_grow_along_each_axis_alone(tmp_path, monkeypatch):
    out, threads = tmp_path / "report.json", []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)  # two are slow where a core is busy
    run_tool(
        monkeypatch, "--config-file", RETINANET, "--only", "inference", "--classes", 5, 9,
        "--sizes", "64x96", "96x128", "--batch-size", 2, 3, "--threads", 1, 2, "--repeats", 1,
        "--candidates", "CLIP", "DenseCLIP", "--json", out,
    )  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    cases = [
        "64 x 96, K = 5, batch 2, threads 1", "64 x 96, K = 9, batch 2, threads 1",
        "96 x 128, K = 5, batch 2, threads 1", "64 x 96, K = 5, batch 3, threads 1",
        "64 x 96, K = 5, batch 2, threads 2",
    ]  # fmt: skip
    places = [(case, name) for case in cases for name in ("CLIP", "DenseCLIP")]
    assert [(row["case"], row["name"]) for row in rows] == places
    assert threads == [1, before := torch.get_num_threads(), *([1, before] * 3), 2, before]


def test_candidates_can_be_chosen(tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    run_tool(
        monkeypatch, "--config-file", RETINANET, "--only", "inference", "--candidates", "DenseCLIP", "CLIP",
        "--classes", 5, "--sizes", "64x96", "--repeats", 1, "--json", out,
    )  # fmt: skip
    assert [row["name"] for row in json.loads(out.read_text())["rows"]] == ["CLIP", "DenseCLIP"]


def test_names_of_a_call_are_measured_beside_names_that_a_model_was_built_with(tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    run_tool(
        monkeypatch, "--only", "names", "--config-file", MASK_RCNN, "--classes", 1, 30, "--sizes", "64x96",
        "--repeats", 1, "--json", out,
    )  # fmt: skip
    rows = [(row["case"], row["name"]) for row in json.loads(out.read_text())["rows"]]
    cases = ("64 x 96, K = 1", "64 x 96, K = 30")
    assert rows == [(case, name) for case in cases for name in ("built with the names", "given")]


def test_a_step_that_reads_some_names_is_measured_beside_plain_clips(tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    given = ("--only", "step-names", "--config-file", MASK_RCNN, "--classes", 70, "--sizes", "64x96")
    for candidates, names in (((), ["CLIP", "64 names", "all names"]), (("CLIP",), ["CLIP", "64 names"])):
        chosen = ("--candidates", *candidates) if candidates else ()
        run_tool(monkeypatch, *given, "--repeats", 1, *chosen, "--json", out)
        rows = json.loads(out.read_text())["rows"]
        assert [row["name"] for row in rows] == names and all(row["megabytes"] > 0 for row in rows)


def test_heads_that_read_some_names_are_measured_beside_those_that_read_all(tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    given = ("--only", "image-names", "--config-file", RETINANET, "--classes", 70, "--sizes", "64x96")
    run_tool(monkeypatch, *given, "--repeats", 1, "--json", out)
    assert [row["name"] for row in json.loads(out.read_text())["rows"]] == ["all names", "64 names"]


def test_kernels_and_checkpointing_save_memory(tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    given = ("--only", "memory", "--config-file", RETINANET, "--sizes", "320x384")
    run_tool(monkeypatch, *given, "--repeats", 1, "--json", out)
    memory = {row["name"]: row["megabytes"] for row in json.loads(out.read_text())["rows"]}
    assert list(memory)[:4] == ["definitions", "kernels", "and checkpointing", "and in bfloat16"]
    assert ("and AdamW in 8 bits" in memory) == bool(find_spec("bitsandbytes"))
    assert all(more > less for more, less in pairwise(memory.values()))


@needs_a_compiler
def test_compiled_models_are_measured_beside_eager_ones(tmp_path, monkeypatch):
    """The backend compiles nothing and takes no time."""
    counter = CompileCounter()
    monkeypatch.setattr(CLIPResNet, "compile", partialmethod(nn.Module.compile, backend=counter))
    out = tmp_path / "report.json"
    run_tool(
        monkeypatch, "--only", "compiled", "--config-file", RETINANET, "--classes", 5, "--sizes", "64x96",
        "--repeats", 1, "--batch-size", 2, "--json", out,
    )  # fmt: skip
    rows = [(row["section"], row["name"]) for row in json.loads(out.read_text())["rows"]]
    directions = ("compiled, inference", "compiled, training")
    assert rows == [(section, name) for section in directions for name in ("eager", "compiled")]
    assert counter.frame_count == 2


def test_the_training_loader_is_measured_beside_detectron2s(small_shapes, tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    run_tool(
        monkeypatch, "--config-file", RETINANET, "--only", "loader", "--repeats", 1, "--json", out,
        "DATASETS.TRAIN", f"('{small_shapes[1]}',)", "SOLVER.IMS_PER_BATCH", 2,
    )  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    both = ["Detectron2", "this project"]
    assert [row["name"] for row in rows] == [*both, "DATASETS.CHECK_IMAGES False", *both]
    assert {row["case"] for row in rows} == {small_shapes[1]}
    assert all(row["milliseconds"] > 0 for row in rows) and rows[-1]["images_per_second"] > 0


def test_a_vit_is_measured_with_its_windows_and_without(tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    run_tool(
        monkeypatch, "--config-file", RETINANET, "--only", "visual", "--sizes", "64x96", "--repeats", 1,
        "--json", out, "MODEL.DENSECLIP.CLIP_MODEL", "ViT-tiny-quickgelu",
        "MODEL.DENSECLIP.VISUAL.WINDOW_SIZE", 3, "MODEL.DENSECLIP.VISUAL.GLOBAL_ATTN_INDEXES", "(3,)",
    )  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == ["without windows", "windows of 3 x 3"] * 2
    assert all(row["milliseconds"] > 0 and row["megabytes"] > 0 for row in rows)


@pytest.mark.parametrize(
    "args, message",
    [
        (("--classes", 20000, "--only", "inference"), "error: --classes 20000: only 1 to 14434 classes"),
        (("--json", "/dev/null/x.json"), "error: the folder of --json .*cannot be written"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(monkeypatch, args, message):
    with pytest.raises(SystemExit, match=message):
        run_tool(monkeypatch, *args, "--config-file", RETINANET)


@pytest.mark.parametrize(
    "args", [("--sizes", "800"), ("--sizes", "0x5"), ("--repeats", 0), ("--only", "all")]
)
def test_a_misspelled_argument_shows_the_usage(monkeypatch, capsys, args):
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, *args)
    assert "benchmark.py: error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("number", [1, 80, 150, 1203, 13204])
def test_there_are_names_for_as_many_classes(number):
    names = class_names(number)
    assert len(names) == number
    check_class_names(names)


def test_candidates_are_one_detector_with_and_without_language():
    cfg = load_config(RETINANET, SMALL)
    configs = candidate_configs(cfg, 5)
    models = {name: Candidate(own, 1, (64, 96), 5, training=True).model for name, own in configs.items()}
    kinds = {"CLIP": RetinaNetGlobalNorm, "DenseCLIP": DenseCLIPRetinaNet, "Detectron2 R18": RetinaNet}
    assert {name: type(model) for name, model in models.items()} == kinds
    shapes = [{n: p.shape for n, p in models[name].head.named_parameters()} for name in kinds]
    assert shapes[0] == shapes[1] == shapes[2]
    with pytest.raises(ValueError, match="DenseCLIPRetinaNet"):
        candidate_configs(configs["CLIP"], 5)


def test_detectors_have_as_many_detections_whatever_their_weights():
    """So postprocessing costs all detectors the same."""
    for config, kind in ((RETINANET, DenseCLIPRetinaNet), (MASK_RCNN, DenseCLIPMaskRCNN)):
        cfg = load_config(config, [*SMALL, "TEST.DETECTIONS_PER_IMAGE", 7])
        for own in candidate_configs(cfg, 5).values():
            candidate = Candidate(own, 1, (64, 96), 5, training=False)
            with torch.no_grad():
                assert len(candidate.model(candidate.batch)[0]["instances"]) == 7, kind


def test_objects_are_inside_the_image_and_of_the_classes():
    instances = random_input((64, 96), 0, 5)["instances"]
    boxes = instances.gt_boxes.tensor
    assert (boxes >= 0).all() and (boxes <= torch.tensor([96, 64, 96, 64])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all() and instances.gt_classes.max() < 5
    assert torch.equal(instances.gt_masks.get_bounding_boxes().tensor, boxes)


def test_candidates_take_turns_after_one_round_that_does_not_count():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = interleaved(steps, 3, CPU)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_ratios_are_of_the_same_round(monkeypatch):
    times = {"slow": [1.0, 10.0, 4.0], "fast": [0.5, 1.0, 2.0]}
    monkeypatch.setattr("denseclip_d2.benchmark.measure.interleaved", lambda *_: times)
    slow, fast = compare("s", "c", {"slow": None, "fast": None}, 3, CPU, images=2)
    assert (slow.ratio, fast.ratio, fast.ratio_range) == (1, 0.5, (0.1, 0.5))
    assert (slow.milliseconds, fast.milliseconds, fast.images_per_second) == (4000, 1000, 2)
    assert slow.megabytes is None


def test_peak_memory_is_of_what_is_there_at_once():
    def step():
        first = torch.ones(1 << 20)
        second = first + 1  # two at once
        del first
        return second + 1

    assert peak_memory(step, CPU) == pytest.approx(2 * 4 << 20, rel=0.01)


def test_a_step_of_training_moves_the_weights_and_holds_the_optimizers_state():
    cfg = candidate_configs(load_config(RETINANET, SMALL), 5)["DenseCLIP"]
    candidate = Candidate(cfg, 2, (64, 96), 5, training=True)
    weight = candidate.model.backbone.language.contexts
    before, held = weight.detach().clone(), candidate.held_bytes()
    candidate.step()
    trained = sum(p.nbytes for p in candidate.model.parameters() if p.requires_grad)
    assert not torch.equal(weight, before) and weight.grad is None
    assert candidate.held_bytes() == pytest.approx(held + 2 * trained, rel=1e-3)  # AdamW's two moments


@pytest.mark.skipif(not find_spec("onnxruntime") or not find_spec("onnx"), reason="onnx is not installed")
def test_exported_files_are_measured_beside_their_model(small_shapes, tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    run_tool(
        monkeypatch, "--only", "exported", "--config-file", "denseclip://Shapes/denseclip_retinanet_tiny.yaml",
        "--repeats", 1, "--json", out, "DATASETS.TRAIN", f"('{small_shapes[1]}',)",
        "DATASETS.TEST", f"('{small_shapes[2]}',)", small=[],
    )  # fmt: skip
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert {"eager", *(f"{x}, ONNX Runtime" for x in ("float32", "float16", "int8"))} <= set(rows)
    assert all(row["milliseconds"] > 0 and row["images_per_second"] > 0 for row in rows.values())


@needs_onnx
def test_runtimes_are_measured_beside_pytorch(tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)  # OpenVINO's would take a minute
    out = tmp_path / "report.json"
    run_tool(
        monkeypatch, "--config-file", MASK_RCNN, "--only", "runtimes", "--classes", 5, "--sizes", "64x96",
        "--repeats", 1, "--json", out,
    )  # fmt: skip
    names = [row["name"] for row in json.loads(out.read_text())["rows"]]
    assert names == ["PyTorch", "PyTorch, bfloat16", "ONNX Runtime", "ONNX Runtime, int8"]

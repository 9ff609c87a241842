"""``TEST.RUNTIME``: detectors by the runtime of their exported file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from test_export_model import needs_onnx, needs_openvino
from test_fusion import assert_outputs_are_near
from torch.testing import assert_close

from denseclip_d2 import Predictor, model_zoo
from denseclip_d2.benchmark.settings import with_values
from denseclip_d2.cli import train_net
from denseclip_d2.cli.parser import parse_args
from denseclip_d2.config import prepare_run
from denseclip_d2.data.image_io import to_bgr
from denseclip_d2.inference import runtime
from denseclip_d2.shapes.scene import draw_scene

pytestmark = needs_onnx


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Return an image of four objects, BGR."""
    return to_bgr(draw_scene(np.random.default_rng(3), 128, 160, max_objects=4)[1])


def predictor_of(name: str, *opts: object) -> Predictor:
    cfg = model_zoo.get_config(name, trained=True)
    cfg.merge_from_list(opts)
    return Predictor(cfg)


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("Shapes/denseclip_mask_rcnn_tiny.yaml", "onnxruntime"),
        pytest.param("Shapes192/denseclip_retinanet_text_tiny.yaml", "openvino", marks=needs_openvino),
    ],
)
def test_a_runtime_finds_what_pytorch_finds_and_exports_once(name, by, image, monkeypatch):
    plain, fast = predictor_of(name), predictor_of(name, "TEST.RUNTIME", by)
    monkeypatch.setattr(fast.model.backbone, "forward", None)  # PyTorch computes nothing
    other = np.ascontiguousarray(image[8:, ::-1])
    for expected, found in zip(plain([image, other]), fast([image, other]), strict=True):
        assert_outputs_are_near(found, expected, boxes=0.01, scores=1e-4)
        if expected["instances"].has("pred_masks"):
            masks = [x["instances"].pred_masks.float().mean(dim=(1, 2)) for x in (found, expected)]
            assert_close(*masks, atol=1e-3, rtol=0)
    monkeypatch.setattr(runtime, "export_model", None)  # the file is kept
    again = predictor_of(name, "TEST.RUNTIME", by)
    assert_outputs_are_near(again(image), plain(image), boxes=0.01, scores=1e-4)
    word = plain.class_names[0]
    assert_close(again(image, [word])["score_maps"], plain(image, [word])["score_maps"], atol=1e-5, rtol=0)
    if plain.takes_names:
        best = plain.class_names[plain(image)["instances"].pred_classes[0]]
        outputs = [x(image, names=["garden gnome", best]) for x in (again, plain)]
        assert_outputs_are_near(*outputs, boxes=0.01, scores=1e-4)
        assert outputs[0]["instances"].pred_classes[0] == 1


def test_an_evaluation_by_a_runtime_resumes_and_has_the_same_metrics(small_shapes, tmp_path):
    _, train, val = small_shapes
    cfg = model_zoo.get_config("Shapes/denseclip_retinanet_tiny.yaml", trained=True)
    weights = Predictor(with_values(cfg, "TEST.OPTIMIZE_FOR_INFERENCE", False)).model.state_dict()
    torch.save({"model": weights}, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    cfg = with_values(cfg, "MODEL.WEIGHTS", "", "DATASETS.TRAIN", (train,), "DATASETS.TEST", (val,))
    (tmp_path / "own.yaml").write_text(with_values(cfg, "OUTPUT_DIR", str(tmp_path)).dump())

    def box_ap(*opts: str) -> float:
        args = ["--eval-only", "--resume", "--config-file", str(tmp_path / "own.yaml"), *opts]
        train_net.main(parse_args(train_net.build_parser(), args))
        return json.loads((tmp_path / "results.json").read_text())["bbox"]["AP"]

    expected = box_ap()
    assert expected > 50
    assert box_ap("TEST.RUNTIME", "onnxruntime") == pytest.approx(expected, abs=0.05)
    assert box_ap("TEST.RUNTIME", "onnxruntime", "TEST.PRECISION", "int8") == pytest.approx(expected, abs=5)
    kept = [x.stat().st_size for x in Path(os.environ["FVCORE_CACHE"]).rglob("model.onnx")]
    assert min(kept) < 0.4 * max(kept)  # int8 is a file of its own


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ("TEST.PRECISION", "int8"),
            "'int8'; with TEST.RUNTIME '' it has to be one of 'float32', 'bfloat16', 'f",
        ),
        (
            ("TEST.RUNTIME", "onnxruntime", "TEST.PRECISION", "bfloat16"),
            "it has to be one of 'float32', 'int8'",
        ),
        (
            ("TEST.RUNTIME", "tract"),
            "it has to be one of '', 'onnxruntime', 'openvino'",
        ),
        (("TEST.RUNTIME", "openvino", "TEST.AUG.ENABLED", True), "TEST.AUG.ENABLED needs PyTorch"),
    ],
)
def test_keys_that_do_not_fit_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        prepare_run(model_zoo.get_config_file("Shapes/denseclip_retinanet_tiny.yaml"), list(opts))


def test_what_no_runtime_runs_is_refused_in_words(monkeypatch):
    with pytest.raises(
        ValueError, match="runs detectors of boxes and masks, and this model is a DenseCLIPSem"
    ):
        predictor_of("Shapes/denseclip_semantic_fpn_tiny.yaml", "TEST.RUNTIME", "onnxruntime")
    monkeypatch.setattr("denseclip_d2.export.formats.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="model.onnx needs onnx and onnxruntime: pip install onnx onnxruntime"
    ):
        predictor_of("Shapes/denseclip_retinanet_tiny.yaml", "TEST.RUNTIME", "onnxruntime")

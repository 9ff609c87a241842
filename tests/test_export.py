import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_checkpoint import CONFIG, tiny_model
from test_engine import ROOT, run_tool

from denseclip_d2 import Predictor, __version__
from denseclip_d2.checkpoint import DenseCLIPCheckpointer, read_header
from denseclip_d2.checkpoint.exported import sha256
from denseclip_d2.engine import load_config

# Everything that has a say in the outputs but no tensor.
OPTS = ["MODEL.DENSECLIP.SCORE_MAP.TAU", "0.1", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]


@pytest.fixture
def trained(tmp_path) -> str:
    """A checkpoint of a model that might have been trained."""
    torch.manual_seed(3)
    model = tiny_model(*OPTS)
    DenseCLIPCheckpointer(model, str(tmp_path)).save("trained")
    return str(tmp_path / "trained.pth")


def convert_tool():
    """tools/convert_checkpoint.py as a module."""
    spec = importlib.util.spec_from_file_location("convert_checkpoint", ROOT / "tools/convert_checkpoint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def convert(folder, source, *args, output="model.safetensors", config=CONFIG) -> None:
    """Run the tool, in this process."""
    files = ["--input", source, "--config-file", config, "--output", folder / output]
    tool = convert_tool()
    tool.main(tool.parse_args([str(x) for x in (*files, *args)]))


@pytest.mark.parametrize("fold", [False, True])
def test_the_header_alone_gives_the_same_detections(tmp_path, small_shapes, trained, fold):
    image = next(small_shapes[0].glob("val/*.png"))
    cfg = load_config(CONFIG, [*OPTS, "MODEL.WEIGHTS", trained])
    expected = Predictor(cfg)(image, score_maps_of=["red solid circle"])
    convert(tmp_path, trained, *(["--fold-text"] if fold else []), *OPTS)
    code = (
        "import sys, torch, denseclip_d2\n"
        "output = denseclip_d2.Predictor.from_files(sys.argv[1])(sys.argv[2], ['red solid circle'])\n"
        "found = output['instances'].get_fields()\n"
        "boxes, scores, classes = found['pred_boxes'].tensor, found['scores'], found['pred_classes']\n"
        "torch.save([boxes, scores, classes, output['score_maps']], sys.argv[3])\n"
    )
    files = [str(x) for x in (tmp_path / "model.safetensors", image, tmp_path / "x")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *files], check=True, cwd=tmp_path)
    boxes, scores, classes, score_maps = torch.load(tmp_path / "x")
    instances = expected["instances"]
    assert len(instances) == 100
    assert torch.equal(boxes, instances.pred_boxes.tensor)
    assert torch.equal(scores, instances.scores)
    assert torch.equal(classes, instances.pred_classes)
    assert torch.equal(score_maps, expected["score_maps"])


def test_the_header_describes_the_file(tmp_path, trained):
    convert(tmp_path, trained, "--fold-text", *OPTS)
    header = read_header(str(tmp_path / "model.safetensors"))
    assert json.loads(header["class_names"])[0] == "red solid circle"
    assert header["tau"] == "0.1"
    assert header["prompt_mode"] == "post"
    assert header["source_sha256"] == sha256(trained)
    assert header["denseclip_d2_version"] == __version__
    cfg = load_config(str(tmp_path / "model.safetensors"), [])
    assert list(cfg.MODEL.DENSECLIP.CLASS_NAMES) == json.loads(header["class_names"])
    assert cfg.MODEL.RETINANET.SCORE_THRESH_TEST == 0.0
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if ".text_encoder." in name]  # noqa: SIM118


def test_half_precision_halves_the_file(tmp_path, trained):
    convert(tmp_path, trained, "--fold-text", output="whole.safetensors")
    convert(tmp_path, trained, "--fold-text", "--half", output="half.safetensors")
    whole, half = ((tmp_path / f"{x}.safetensors").stat().st_size for x in ("whole", "half"))
    assert 0.4 < half / whole < 0.6
    predictor = Predictor.from_files(tmp_path / "half.safetensors")
    assert {p.dtype for p in predictor.model.parameters()} == {torch.float32}


def test_what_cannot_be_converted_leaves_no_file(tmp_path, trained):
    (tmp_path / "taken.safetensors").write_bytes(b"a person's work")
    (tmp_path / "cut.pth").write_bytes(Path(trained).read_bytes()[:10_000])
    (tmp_path / "empty").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    mask_rcnn = "configs/Shapes/denseclip_mask_rcnn_tiny.yaml"
    for source, output, config, message in (
        (trained, "taken.safetensors", CONFIG, "exists, and is not overwritten"),
        (trained, "model.pth", CONFIG, "end in .safetensors"),
        (trained, "model.safetensors", mask_rcnn, "MODEL.WEIGHTS does not hold this model. Missing"),
        (tmp_path / "cut.pth", "model.safetensors", CONFIG, "cannot be read as weights"),
        (tmp_path / "empty", "model.safetensors", CONFIG, "it is a folder"),
        (tmp_path / "nowhere.pth", "model.safetensors", CONFIG, "there is no such file"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            convert(tmp_path, source, output=output, config=config)
    assert (tmp_path / "taken.safetensors").read_bytes() == b"a person's work"
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_tool_says_what_is_wrong_in_one_line(tmp_path):
    arguments = ("--input", tmp_path / "nowhere.pth", "--output", tmp_path / "x.safetensors")
    done = run_tool("convert_checkpoint.py", *arguments, datasets=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: MODEL.WEIGHTS = '{arguments[1]}': there is no such file."


def test_exported_weights_under_other_settings_are_refused(tmp_path, trained):
    """Class names and temperature show in no tensor's shape."""
    convert(tmp_path, trained, *OPTS)
    path = str(tmp_path / "model.safetensors")
    names = [f"thing {i}" for i in range(18)]
    with pytest.raises(ValueError, match="exported with tau 0.1, not 0.07"):
        DenseCLIPCheckpointer(tiny_model()).load(path)
    with pytest.raises(ValueError, match='exported with class_names .*"red solid circle".*not .*"thing 0"'):
        DenseCLIPCheckpointer(tiny_model(*OPTS, "MODEL.DENSECLIP.CLASS_NAMES", str(names))).load(path)
    DenseCLIPCheckpointer(tiny_model(), allow_partial=True).load(path)


def test_a_header_that_cannot_serve_as_config_is_named(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="says nothing about its config"):
        load_config(str(tmp_path / "bare.safetensors"), [])
    header = {"denseclip_d2_version": "9.0", "config": "MODEL: {DENSECLIP: {NEW: 1}}"}
    save_file({"a": torch.ones(1)}, tmp_path / "new.safetensors", header)
    with pytest.raises(ValueError, match=r"written by denseclip_d2 9.0, .*MODEL.DENSECLIP.NEW"):
        load_config(str(tmp_path / "new.safetensors"), [])

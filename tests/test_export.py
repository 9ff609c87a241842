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
from denseclip_d2.checkpoint import DenseCLIPCheckpointer
from denseclip_d2.cli import convert_checkpoint
from denseclip_d2.config import load_config
from denseclip_d2.guidance.model_settings import ModelSettings
from denseclip_d2.model_zoo.zoo import zoo_index
from denseclip_d2.utils.safetensors_file import read_header, sha256

# Settings that change the outputs but have no tensor.
OPTS = ["MODEL.DENSECLIP.SCORE_MAP.TAU", "0.1", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]


@pytest.fixture
def trained(tmp_path) -> str:
    """Save a checkpoint of a model that looks trained."""
    torch.manual_seed(3)
    model = tiny_model(*OPTS)
    DenseCLIPCheckpointer(model, str(tmp_path)).save("trained")
    return str(tmp_path / "trained.pth")


def convert(folder, source, *args, output="model.safetensors", config=CONFIG) -> None:
    """Run the tool in this process."""
    files = ["--input", source, "--config-file", config, "--output", folder / output]
    options = [str(x) for x in (*files, *args)]
    convert_checkpoint.main(convert_checkpoint.build_parser().parse_args(options))


@pytest.mark.parametrize("precompute", [False, True])
def test_the_header_alone_gives_the_same_detections(tmp_path, small_shapes, trained, precompute):
    image = next(small_shapes[0].glob("val/*.png"))
    cfg = load_config(CONFIG, [*OPTS, "MODEL.WEIGHTS", trained])
    expected = Predictor(cfg)(image, score_map_names=["red solid circle"])
    convert(tmp_path, trained, *(["--precompute-text"] if precompute else []), *OPTS)
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
    convert(tmp_path, trained, "--precompute-text", *OPTS)
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
    convert(tmp_path, trained, "--precompute-text", output="whole.safetensors")
    convert(tmp_path, trained, "--precompute-text", "--half", output="half.safetensors")
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
        (trained, "taken.safetensors", CONFIG, "exists and is not overwritten"),
        (trained, "model.pth", CONFIG, "end in .safetensors"),
        (trained, "model.safetensors", mask_rcnn, "trained.pth. does not hold this model. Missing"),
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
    """Class names and temperature do not change the shape of a tensor."""
    convert(tmp_path, trained, *OPTS)
    path = str(tmp_path / "model.safetensors")
    names = [f"thing {i}" for i in range(18)]
    for key, other in (
        ("MODEL.DENSECLIP.SCORE_MAP.TAU", "0.07"), ("MODEL.DENSECLIP.SCORE_MAP.CONCAT_LOGITS", "False"),
        ("MODEL.DENSECLIP.FPN_P7_RELU", "False"), ("MODEL.DENSECLIP.VISUAL.POS_EMBED", "crop"),
        ("MODEL.DENSECLIP.CONTEXT_DECODER.HEADS", "8"), ("MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"exported with {key} .* instead of"):
            DenseCLIPCheckpointer(tiny_model(*OPTS, key, other)).load(path)
    named = tiny_model(*OPTS, "MODEL.DENSECLIP.CLASS_NAMES", str(names))
    with pytest.raises(ValueError, match="class names: 'red solid circle' instead of 'thing 0'"):
        DenseCLIPCheckpointer(named, for_training=False).load(path)
    DenseCLIPCheckpointer(tiny_model(), allow_partial=True).load(path)


def test_a_header_that_cannot_serve_as_config_is_named(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="says nothing about its config"):
        load_config(str(tmp_path / "bare.safetensors"), [])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "bare.safetensors").read_bytes()[:20])
    with pytest.raises(ValueError, match="cut.safetensors' is damaged"):
        load_config(str(tmp_path / "cut.safetensors"), [])
    with pytest.raises(FileNotFoundError, match="no.safetensors': there is no such file"):
        load_config(str(tmp_path / "no.safetensors"), [])
    bad = (
        "MODEL: {DENSECLIP: {NEW: 1}}",
        "just text",
        "[1, 2]",
        "a: [",
        "a: !!python/object/apply:os.abort []",
    )
    for config in (*bad, "MODEL: {DENSECLIP: {LOSS_WEIGHT: text}}", "_BASE_: /etc/passwd"):
        header = {"denseclip_d2_version": "9.0", "config": config}
        save_file({"a": torch.ones(1)}, tmp_path / "new.safetensors", header)
        with pytest.raises(
            ValueError, match=r"new.safetensors' was written by denseclip_d2 9.0, and its config"
        ):
            load_config(str(tmp_path / "new.safetensors"), [])


def test_what_is_the_machines_stays_with_the_machine(tmp_path, trained):
    """An export leaves out machine-specific settings, and loading a header ignores them."""
    local = ["OUTPUT_DIR", str(tmp_path / "mine"), "MODEL.ALLOW_PARTIAL_WEIGHTS", "True"]
    convert(tmp_path, trained, *local)
    cfg = load_config(str(tmp_path / "model.safetensors"), [])
    assert str(tmp_path) not in read_header(str(tmp_path / "model.safetensors"))["config"]
    assert (cfg.OUTPUT_DIR, cfg.MODEL.ALLOW_PARTIAL_WEIGHTS) == ("./output", False)
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {
        "denseclip_d2_version": "1", "config": "OUTPUT_DIR: /theirs\nMODEL: {ALLOW_PARTIAL_WEIGHTS: true}",
    })  # fmt: skip
    cfg = load_config(str(tmp_path / "x.safetensors"), [])
    assert (cfg.OUTPUT_DIR, cfg.MODEL.ALLOW_PARTIAL_WEIGHTS) == ("./output", False)


def test_the_zoos_weights_can_be_converted_again(tmp_path):
    name = "Shapes/denseclip_retinanet_tiny.yaml"
    precomputed = ("MODEL.DENSECLIP.PROMPT.PRECOMPUTED", "True")
    convert(tmp_path, f"denseclip://{name}", *precomputed, config=f"configs/{name}")
    assert read_header(str(tmp_path / "model.safetensors"))["source_sha256"] == zoo_index()[name].sha256


def test_weights_too_large_for_half_precision_are_named(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.head.cls_score.bias[3] = 1e6
    DenseCLIPCheckpointer(model, str(tmp_path)).save("large")
    with pytest.raises(
        ValueError, match=r"head.cls_score.bias has values up to 1e\+06, too large for float16"
    ):
        convert(tmp_path, tmp_path / "large.pth", "--half")
    assert not (tmp_path / "model.safetensors").exists()


def test_text_cannot_be_folded_where_there_is_none(tmp_path, trained):
    plain = ["MODEL.META_ARCHITECTURE", "RetinaNetGlobalNorm"]
    plain += ["MODEL.BACKBONE.NAME", "build_clip_retinanet_fpn_backbone"]
    with pytest.raises(ValueError, match="--precompute-text: this model is without language"):
        convert(tmp_path, trained, "--precompute-text", *plain)


def test_an_exported_file_stands_for_a_config_on_the_command_line(tmp_path):
    """Detectron2 would log the text of a config file. An exported file works here as well."""
    weights = ROOT / "denseclip_d2/model_zoo/weights/denseclip_retinanet_tiny.safetensors"
    opts = ("DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path / "output")
    done = run_tool("train_net.py", "--eval-only", *opts, datasets=tmp_path, config=str(weights))
    assert done.returncode == 0, done.stderr
    assert f"Loading from {weights}" in (tmp_path / "output/log.txt").read_text()


def test_the_settings_of_a_file_are_compared_with_those_of_a_config():
    """Of what a model does not have, and of what a file does not tell, nothing is asked."""
    cfg = load_config(CONFIG, OPTS)
    settings = ModelSettings.from_config(cfg, guided=True)
    assert ModelSettings.from_keys(json.loads(json.dumps(settings.by_key()))) == settings
    assert settings.differences(ModelSettings.from_config(cfg, guided=False)) == ""
    key = "MODEL.DENSECLIP.SCORE_MAP.TAU"
    assert settings.differences(ModelSettings(tau=0.07)) == f"{key} 0.1 instead of 0.07"
    assert ModelSettings.from_keys({"MODEL.OF.A.LATER.VERSION": 1}) == ModelSettings()
    cfg.MODEL.BACKBONE.NAME = "build_denseclip_fpn_backbone"
    assert ModelSettings.from_config(cfg, guided=True).fpn_p7_relu is None

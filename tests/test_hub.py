"""Models from a Hugging Face hub, which a local server replaces, and their model cards."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_checkpoint import CONFIG
from test_engine import ROOT
from test_export import convert

from denseclip_d2.config import load_config
from denseclip_d2.model_zoo import card, hub
from denseclip_d2.model_zoo.card import find_metrics, model_card

ZOO = ROOT / "denseclip_d2/model_zoo/weights/denseclip_retinanet_tiny.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"model.safetensors": ZOO, "configs/own.yaml": ROOT / CONFIG}


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with the repository "someone/shapes" of FILES as "main" and "v1". "someone/gated" has terms."""

    def do_HEAD(self):
        self.server.asked.append(f"{self.command} {self.path}")
        *repo, resolve, revision = (self.path + "////").split("/")[1:5]
        file = FILES.get(self.path.split("/", 5)[-1])
        known = repo == ["someone", "shapes"] and resolve == "resolve"
        error = "" if known else "GatedRepo" if repo[-1] == "gated" else "RepoNotFound"
        if known and revision not in ("main", "v1", COMMIT):
            error = "RevisionNotFound"
        elif known and file is None:
            error = "EntryNotFound"
        content = b"" if error else file.read_bytes()
        self.send_response({"": 200, "GatedRepo": 403}.get(error, 404))
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD

    def log_message(self, *args):
        pass


@pytest.fixture
def server(serve):
    server = serve(Hub)
    server.asked = []
    return server


@pytest.fixture
def at_hub(server, tmp_path, monkeypatch):
    """Make huggingface_hub use the server, as if HF_ENDPOINT and HF_HOME were set."""
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub.constants.ENDPOINT, endpoint)
    monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return server


def test_weights_and_config_come_from_a_hub_on_the_command_line(server, tmp_path, small_shapes):
    """The second time, the files come from the cache without the hub."""
    image = next(small_shapes[0].glob("val/*.png"))
    environment = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", "tools/demo.py", "--input", str(image), "--config-file"]
    address = "hf://someone/shapes/model.safetensors"
    for output, hub_is_there in (("a", True), ("b", False)):
        if not hub_is_there:
            server.shutdown()
            server.server_close()
        done = subprocess.run(
            [*command, address, "--output", str(tmp_path / output)], cwd=ROOT, capture_output=True, text=True,
            check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    first, again = (json.loads((tmp_path / x / "detections.json").read_text()) for x in "ab")
    assert first == again and first["annotations"]
    assert sum(asked.startswith("GET /someone/shapes/resolve/") for asked in server.asked) == 1


def test_a_config_on_the_hub_is_read(at_hub, tmp_path):
    cfg = load_config("hf://someone/shapes@v1/model.safetensors", ["SOLVER.MAX_ITER", "7"])
    assert cfg.MODEL.WEIGHTS == "hf://someone/shapes@v1/model.safetensors"
    expected = load_config(str(ZOO), ["SOLVER.MAX_ITER", "7", "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS])
    assert cfg == expected
    assert any("/resolve/v1/" in asked for asked in at_hub.asked)
    text = Path(hub.resolve_hub_path("hf://someone/shapes/configs/own.yaml")).read_text()
    assert text == (ROOT / CONFIG).read_text()


def test_what_a_hub_does_not_have_is_said(at_hub):
    for path, message in (
        ("hf://someone/none/x.safetensors", "someone/none does not exist, or is private.*HF_TOKEN"),
        ("hf://someone/gated/x.safetensors", "someone/gated is gated"),
        ("hf://someone/shapes/x.safetensors", "someone/shapes has no file 'x.safetensors'"),
        ("hf://someone/shapes@v9/model.safetensors", "has no revision 'v9'"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            hub.resolve_hub_path(path)
    for path in ("hf://model.safetensors", "hf://someone/shapes", "hf://someone/shapes/", "hf://a//b"):
        with pytest.raises(ValueError, match="is not hf://OWNER/REPO/FILE"):
            hub.resolve_hub_path(path)


def test_offline_the_way_out_is_said(at_hub, monkeypatch):
    at_hub.shutdown()
    at_hub.server_close()
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's tries
    message = "the file is not in .*cache, and http://127.0.0.1:.* cannot be reached .*hf download someone/"
    with pytest.raises(FileNotFoundError, match=message):
        load_config("hf://someone/shapes/model.safetensors", [])


METRICS = (
    '{"bbox/AP": 10.0, "iteration": 9}\n{"total_loss": 1.5, "iteration": 19}\n'
    '{"bbox/AP": 20.123, "bbox/AP50": 30.0, "bbox/APl": NaN, "bbox/AP-blue circle": 5.0, "iteration": 20}\n'
)


def test_a_card_has_what_a_hubs_page_needs(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.json").write_text(METRICS)
    # The zoo's weights replace the last weights of a training.
    (run / "model_final.pth").write_bytes(ZOO.read_bytes())
    precomputed = ("MODEL.DENSECLIP.PROMPT.PRECOMPUTED", "True")
    (tmp_path / "page").mkdir()
    options = ("--model-card", "--license", "mit", "--half", *precomputed)
    convert(tmp_path / "page", run / "model_final.pth", *options, output="circles.safetensors")
    text = (tmp_path / "page/README.md").read_text()
    _, data, body = text.split("---\n", 2)
    data = yaml.safe_load(data)
    assert (data["license"], data["pipeline_tag"]) == ("mit", "object-detection")
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"]["name"] == "shapes_val"
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"bbox/AP": 20.12, "bbox/AP50": 30.0}
    for words in (
        "# circles", "hf://OWNER/REPO/circles.safetensors", "of 18 classes", "red solid circle, ", "20.12",
        "Of shapes_val, before the weights were rounded to float16", "These weights: mit.", "(shapes_train)",
    ):  # fmt: skip
        assert words in body
    config = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert config["MODEL"]["META_ARCHITECTURE"] == "DenseCLIPRetinaNet"
    assert str(tmp_path) not in text
    with pytest.raises(FileExistsError, match="README.md exists"):
        convert(tmp_path / "page", run / "model_final.pth", *options, output="again.safetensors")
    assert not (tmp_path / "page/again.safetensors").exists()


def test_figures_are_those_of_the_weights(tmp_path):
    """The last metrics of a training do not belong to an earlier checkpoint."""
    (tmp_path / "metrics.json").write_text(METRICS)
    assert find_metrics(None, str(tmp_path / "model_0000009.pth")) == {}
    assert find_metrics(None, "denseclip://Shapes/denseclip_retinanet_tiny.yaml") == {}
    figures = find_metrics(None, str(tmp_path / "model_final.pth"))
    assert figures == find_metrics(str(tmp_path / "metrics.json"), "x.pth")
    assert figures == {"bbox/AP": 20.12, "bbox/AP50": 30.0}
    (tmp_path / "metrics.json").write_text("no JSON")
    with pytest.raises(ValueError, match="is not a metrics.json of a training"):
        find_metrics(None, str(tmp_path / "model_final.pth"))
    with pytest.raises(FileNotFoundError, match="--metrics .*nowhere.json does not exist"):
        find_metrics(str(tmp_path / "nowhere.json"), "x.pth")


def test_a_model_that_was_not_evaluated_says_so():
    cfg = load_config("configs/Shapes/denseclip_semantic_fpn_tiny.yaml", [])
    text = model_card(cfg, ["a", "b"], {}, file="x.safetensors", license="apache-2.0")
    data = yaml.safe_load(text.split("---\n")[1])
    assert data["pipeline_tag"] == "image-segmentation" and "model-index" not in data
    assert "Not evaluated." in text
    assert card.METRIC.fullmatch("sem_seg/mIoU") and not card.METRIC.fullmatch("sem_seg/IoU-red")

"""The web page: uploads, actions over HTTP, and the page in a browser."""

import html
import json
import math
import os
import shutil
import socket
import sys
import threading
import time
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlparse

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import run_tool_here
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

from configs import prepared_cfg
from denseclip_d2 import model_zoo
from denseclip_d2.builder import build_model_with_weights
from denseclip_d2.data import get_class_names
from denseclip_d2.shapes.dataset import CLASS_NAMES
from denseclip_d2.visualization.drawing import draw_detections, draw_label_map
from denseclip_d2.web_demo import session
from denseclip_d2.web_demo.session import (
    DetectionPrediction,
    Limits,
    Models,
    SegmentationPrediction,
    names_typed,
    read_upload,
)

RETINANET = "Shapes/denseclip_retinanet_tiny.yaml"
PHOTOGRAPHS = "WithoutTraining/photographs.yaml"
TOOL = "web_demo.py"
ANY_WORDS, ANY_NAMES = "any words", "any names"
HEXAGON = "violet hexagon"
"""A name that no label has."""
NAMES = "red solid circle, blue striped square"


@pytest.fixture
def web():
    """Import the module of the page."""
    pytest.importorskip("gradio", reason="Gradio is not installed: make install")
    from denseclip_d2.web_demo import app as web

    return web


class Watched:
    """Count a model's runs and how many are at the same time. ``free`` pauses it."""

    def __init__(self, model: torch.nn.Module):
        self.runs = self.now = self.most = 0
        self.free = threading.Event()
        self.free.set()
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)

    def _begin(self, *_):
        self.runs, self.now = self.runs + 1, self.now + 1
        self.most = max(self.most, self.now)
        self.free.wait()

    def _end(self, *_):
        self.now -= 1


def finder_of(name: str, folder: Path) -> CfgNode:
    """Return the config of a Mask R-CNN that takes every region for a name that it was not trained on."""
    text = ["MODEL.DENSECLIP.CLASSIFIER", "text", "MODEL.DENSECLIP.SCORE_MAP.CONCAT", "text"]
    agnostic = [
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        True,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK",
        True,
    ]
    cfg = prepared_cfg("configs/Shapes/denseclip_mask_rcnn_tiny.yaml", [*text, *agnostic])
    model = build_model_with_weights(cfg, for_training=True).eval()
    language, heads = model.backbone.language, model.roi_heads
    with torch.no_grad():
        found = F.normalize(language.encode_names([name], language.contexts)[0, 0], dim=0)
        across = F.normalize(torch.randn_like(found) - found, dim=0)
        across = F.normalize(across - (across @ found) * found, dim=0)
        predictor = heads.box_predictor
        predictor.cls_score.weight.zero_()
        predictor.cls_score.bias.copy_(found)
        predictor.classifier.background.copy_(0.97 * found + (1 - 0.97**2) ** 0.5 * across)
        predictor.classifier.log_scale.fill_(math.log(200))
        heads.mask_head.predictor.bias.fill_(9)
    torch.save({"model": model.state_dict()}, folder / "finder.pth")
    cfg.MODEL.WEIGHTS = str(folder / "finder.pth")
    return cfg


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Serve a zoo model, one with a text encoder, one of any names. Yield address and watched zoo model."""
    pytest.importorskip("gradio", reason="Gradio is not installed: make install")
    from denseclip_d2.web_demo import app as web

    cfg = prepared_cfg("configs/Shapes/denseclip_semantic_fpn_tiny.yaml", ["MODEL.WEIGHTS", ""])
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    zoo = model_zoo.get_config(RETINANET, trained=True)
    configs = {RETINANET: zoo, ANY_WORDS: cfg, ANY_NAMES: finder_of(HEXAGON, folder)}
    page = web.Page(Models(configs), Limits(queue=19))
    with pytest.MonkeyPatch.context() as patch, web.serve_page(page, port=0) as address:
        patch.setattr(session, "MODELS_KEPT", 3)
        yield address, Watched(page.models.get(RETINANET).model)


@pytest.fixture(scope="module")
def client(served):
    from gradio_client import Client

    # No timeout, because the machine may be busy.
    options = {"timeout": None}
    client = Client(served[0], verbose=False, download_files=False, httpx_kwargs=options)
    yield client
    client.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    return [path for path, _ in session.write_examples(tmp_path_factory.mktemp("images"), 20)]


def sent(client, path: str, names: str = NAMES, model: str = RETINANET):
    """Submit an image to the page."""
    from gradio_client import handle_file

    return client.submit(handle_file(path), model, names, 0.4, api_name="/predict")


def coco_of(outputs) -> dict:
    """Return the COCO file, which follows a text and two images."""
    return json.loads(Path(outputs[3]["path"]).read_text())


def captions(outputs) -> list[str]:
    """Return the names of the heat maps."""
    return [x["caption"] for x in outputs[4]]


def test_twenty_uploads_run_one_after_the_other_and_more_are_refused(served, client, images):
    _, model = served
    before, model.most = model.runs, 0
    model.free.clear()
    try:
        jobs = [sent(client, images[0])]
        while not model.now:
            time.sleep(0.01)
        jobs += [sent(client, path) for path in [*images[1:], *images[:3]]]
        while sum(job.done() for job in jobs) < 3:  # one runs, 19 wait
            time.sleep(0.01)
        refused = [job for job in jobs if job.done()]
    finally:
        model.free.set()
    seen = [coco_of(job.result())["images"][0]["file_name"] for job in jobs if job not in refused]
    sent_names = [Path(path).name for job, path in zip(jobs, images * 2, strict=False) if job not in refused]
    assert seen == sent_names and len(seen) == 20
    assert (model.runs - before, model.most) == (20, 1)
    for job in refused:
        with pytest.raises(Exception, match="Queue is full! Please try again"):
            job.result()


def test_the_slider_redraws_without_the_model(served, client, images):
    _, model = served
    first = sent(client, images[0]).result()
    before = model.runs
    found, image, _ = client.predict(0.99, api_name="/draw")
    assert "No prediction reaches this score." in found and "No prediction" not in first[0]
    again = client.predict(0.4, api_name="/draw")
    assert again[0] == first[0]
    assert Path(image["path"]).read_bytes() != Path(again[1]["path"]).read_bytes()
    assert model.runs == before
    with_names = client.predict(None, RETINANET, "green solid circle", 0.4, api_name="/predict")
    assert model.runs == before + 1  # the same image without a new upload
    assert captions(with_names) == ["green solid circle"]


def test_any_words_have_heat_maps_if_the_model_has_a_text_encoder(client, images):
    words = "Hexagon, something green, <b>, red solid circle"
    outputs = sent(client, images[0], words, ANY_WORDS).result()
    assert captions(outputs) == ["Hexagon", "something green", "<b>", "red solid circle"]
    precomputed = sent(client, images[0], words).result()
    assert captions(precomputed) == ["red solid circle"]
    assert "This model does not know: Hexagon, something green, &lt;b&gt;." in precomputed[0]


def found_in(outputs) -> set[str]:
    """Return the names of the annotations that score at least 0.4, which all have masks."""
    coco = coco_of(outputs)
    assert all(x["segmentation"]["counts"] for x in coco["annotations"])
    names = {category["id"]: category["name"] for category in coco["categories"]}
    return {names[x["category_id"]] for x in coco["annotations"] if x["score"] >= 0.4}


def test_boxes_and_masks_of_a_name_that_no_label_had(client, images):
    assert HEXAGON not in CLASS_NAMES
    typed = [f"red solid circle, {HEXAGON}, a dog", HEXAGON, "a dog, red solid circle", ""]
    jobs = [sent(client, path, names, ANY_NAMES) for path, names in zip(images, typed, strict=False)]
    outputs = [job.result() for job in jobs]
    assert [found_in(x) for x in outputs] == [{HEXAGON}, {HEXAGON}, set(), set()]
    assert HEXAGON in outputs[0][0] and captions(outputs[0]) == typed[0].split(", ")
    listed = [[category["name"] for category in coco_of(x)["categories"]] for x in outputs]
    assert listed == [*(names.split(", ") for names in typed[:3]), [*CLASS_NAMES]]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("dog|", "empty synonym"),
        ("word " * 20, "longer than 60 characters"),
        ("☃" * 56, "Shorten the names"),
        ("<end_of_text>", "special token"),
        ("dog|hound, hound", "more than once"),
    ],
)
def test_bad_names_have_a_message(client, images, names, words):
    assert words in html.unescape(sent(client, images[0], names, ANY_NAMES).result()[0])


def test_refusals_have_a_message_and_the_page_still_works(served, client, images, tmp_path):
    import httpx

    broken, many = tmp_path / "broken.png", ",".join("abcdefghi")
    broken.write_bytes(b"no image")
    for path, names, words in (
        (broken, NAMES, "broken.png is broken, or not an image of these formats"),
        (images[0], many, "9 names. The limit is 8."),
    ):
        assert words in sent(client, str(path), names).result()[0]
    large = {"files": ("large.png", bytes(50_000_000))}
    answer = httpx.post(f"{served[0]}gradio_api/upload", files=large, timeout=None)
    assert answer.status_code == 413 and "maximum allowed size" in answer.text
    assert coco_of(sent(client, images[0]).result())["annotations"]


def test_only_the_given_address_is_served(served):
    """Connect to an address of this machine that the page does not listen on."""
    port = urlparse(served[0]).port
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


@pytest.fixture
def browser():
    """Open a tab in Debian's headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make install")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no browser here: apt-get install chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = running.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(300_000)  # the machine may be busy
        yield tab
        running.close()


CHANGED = "src => document.querySelector('#result img').src != src"
"""Whether the page shows another result than the one of an address."""


def draw_page(browser, path: str) -> None:
    """Save the README's screenshot."""
    browser.wait_for_timeout(1000)  # until the layout is complete
    shot = Image.open(BytesIO(browser.screenshot(full_page=True))).convert("RGB")
    shot.save(path, quality=88, optimize=True)


def test_upload_names_and_slider_in_a_browser(served, browser, images, tmp_path):
    address, model = served
    asked = []
    browser.on("request", lambda request: asked.append(request.url))
    browser.goto(address)
    image, found = browser.locator("#result img"), browser.locator("#found")
    image.wait_for()  # the first example

    browser.locator("#heat_maps img").last.wait_for()
    begun = image.get_attribute("src")
    browser.set_input_files("#image input[type=file]", images[1])
    browser.wait_for_function(CHANGED, arg=begun)
    uploaded, boxes = image.get_attribute("src"), found.inner_text()

    browser.fill("#names textarea", "blue solid square")
    browser.press("#names textarea", "Enter")
    browser.locator("#heat_maps").get_by_text("blue solid square").wait_for()
    assert browser.locator("#heat_maps img").count() == 1

    runs = model.runs
    browser.press("#threshold input[type=range]", "End")
    found.get_by_text("No prediction reaches this score.").wait_for()
    browser.wait_for_function(CHANGED, arg=uploaded)
    assert boxes and model.runs == runs

    with browser.expect_download() as download:
        browser.get_by_text("Predictions (COCO JSON)").click()
    assert COCO(download.value.path()).imgs[1]["file_name"] == Path(images[1]).name

    (tmp_path / "large.png").write_bytes(bytes(50_000_000))
    browser.set_input_files("#image input[type=file]", tmp_path / "large.png")
    browser.get_by_text("exceed the maximum allowed size").first.wait_for()
    (tmp_path / "broken.png").write_bytes(b"no image")
    browser.set_input_files("#image input[type=file]", tmp_path / "broken.png")
    found.get_by_text("broken.png is broken, or not an image").wait_for()
    browser.set_input_files("#image input[type=file]", images[2])
    found.get_by_text("No prediction reaches this score.").wait_for()  # the page still works

    browser.fill("#names textarea", f"red solid circle, {HEXAGON}")
    browser.locator("#model input").click()
    browser.get_by_role("option", name=ANY_NAMES).click()
    browser.locator("#heat_maps").get_by_text(HEXAGON).wait_for()
    browser.press("#threshold input[type=range]", "Home")
    found.get_by_text(f"{HEXAGON} ·").wait_for()

    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert asked and not elsewhere


def test_a_slider_that_moves_during_a_prediction_decides(served, browser):
    address, model = served
    browser.goto(address)
    browser.locator("#heat_maps img").last.wait_for()  # the first example
    model.free.clear()
    try:
        browser.fill("#names textarea", "blue solid square")
        runs = model.runs
        browser.press("#names textarea", "Enter")
        while model.runs == runs:
            browser.wait_for_timeout(10)
        browser.press("#threshold input[type=range]", "End")
        browser.locator("#found").get_by_text("No prediction reaches this score.").wait_for()
    finally:
        model.free.set()
    browser.locator("#heat_maps").get_by_text("blue solid square").wait_for()
    browser.locator("#found").get_by_text("No prediction reaches this score.").wait_for()


def test_the_page_begins_with_a_photograph(web, browser):
    configs = {name: model_zoo.get_config(name, trained=True) for name in (PHOTOGRAPHS, RETINANET)}
    with web.serve_page(web.Page(Models(configs), Limits()), port=0) as address:
        browser.goto(address)
        heat_maps, found = browser.locator("#heat_maps"), browser.locator("#found")
        for name in ("space shuttle", "helmet", "flag", "person"):
            heat_maps.get_by_text(name).wait_for()
        found.get_by_text("space shuttle ·").wait_for()
        browser.locator("#about").get_by_text("2176 names").wait_for()
        if "SCREENSHOT" in os.environ:
            draw_page(browser, os.environ["SCREENSHOT"])
        browser.fill("#names textarea", "Helmet, my dog Rex")
        browser.press("#names textarea", "Enter")
        found.get_by_text("'my dog Rex' is none of the 2176 names").wait_for()
        browser.fill("#names textarea", "tabby cat")
        browser.press("#names textarea", "Enter")
        heat_maps.get_by_text("tabby cat").wait_for()


def test_uploads_are_read_upright(tmp_path):
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[:, :30] = 200, 100, 50
    image = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x0112] = 6  # a rotation by a quarter turn
    image.save(tmp_path / "turned.png", exif=exif)
    image.convert("RGBA").save(tmp_path / "transparent.png")
    image.convert("L").save(tmp_path / "gray.png")
    Image.fromarray(np.full((40, 60), 40_000, np.uint16)).save(tmp_path / "deep.png")
    image.save(tmp_path / "photo.jpg")
    image.save(tmp_path / "image.webp", lossless=True)
    shapes = {path.name: read_upload(str(path), Limits()).shape for path in tmp_path.iterdir()}
    assert shapes.pop("turned.png") == (60, 40, 3)
    assert set(shapes.values()) == {(40, 60, 3)}
    assert read_upload(str(tmp_path / "transparent.png"), Limits())[0, 0].tolist() == [50, 100, 200]
    assert read_upload(str(tmp_path / "deep.png"), Limits())[0, 0].tolist() == [40_000 >> 8] * 3
    small = read_upload(str(tmp_path / "gray.png"), Limits(side=30))
    assert small.shape == (20, 30, 3)


def test_large_files_and_other_files_are_not_decoded(tmp_path, monkeypatch):
    Image.new("L", (3000, 2000)).save(tmp_path / "wide.png")
    Image.new("RGB", (50, 50)).save(tmp_path / "image.eps")
    (tmp_path / "empty.png").touch()
    (tmp_path / "half.png").write_bytes((tmp_path / "wide.png").read_bytes()[:300])
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(50_000_000)
    monkeypatch.setattr(session, "to_bgr", lambda image: image.load())
    for name, words in (
        ("wide.png", r"too many pixels \(3000 x 2000 pixels\)\. The limit is 5 megapixels"),
        ("large.png", r"large.png has 50 MB\. The limit is 20 MB"),
        ("image.eps", "not an image of these formats"),  # Pillow would run another program
        ("empty.png", "not an image of these formats"),
    ):
        with pytest.raises(ValueError, match=words):
            read_upload(str(tmp_path / name), Limits(megapixels=5))
    with pytest.raises(ValueError, match="half.png is broken"):
        read_upload(str(tmp_path / "half.png"), Limits())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="too many pixels"):
        read_upload(str(tmp_path / "wide.png"), Limits())


def test_names_are_separated_by_commas():
    typed = " Red  solid circle, a dog,,A DOG , "
    assert names_typed(typed, CLASS_NAMES, Limits()) == ["red solid circle", "A DOG"]
    assert names_typed("", CLASS_NAMES, Limits()) == []
    with pytest.raises(ValueError, match="longer than 5 characters"):
        names_typed("horse, elephant", CLASS_NAMES, Limits(name_length=5))
    with pytest.raises(ValueError, match="limit of queue is 0; it must be at least 1"):
        Limits(queue=0)


def test_masks_are_encoded_and_drawn_unchanged():
    image = np.full((50, 61, 3), 128, np.uint8)
    masks = torch.zeros(2, 50, 61, dtype=torch.bool)
    masks[0, 5:20, 5:25], masks[1, 30:, 40:] = True, True
    boxes = Boxes(torch.tensor([[5.0, 5, 25, 20], [40, 30, 61, 50]]))
    fields = {"scores": torch.tensor([0.9, 0.3]), "pred_classes": torch.tensor([0, 4]), "pred_masks": masks}
    instances = Instances((50, 61), pred_boxes=boxes, **fields)
    seen = DetectionPrediction(instances)
    assert sum(len(x["segmentation"]["counts"]) for x in seen.annotations) < masks.nbytes / 7
    for threshold, amounts in ((0.2, {0: "1", 4: "1"}), (0.5, {0: "1"}), (0.95, {})):
        expected = draw_detections(image, instances, CLASS_NAMES, threshold)
        np.testing.assert_array_equal(seen.draw(image, CLASS_NAMES, threshold), expected)
        assert seen.amounts(threshold) == amounts


def test_pixels_below_the_threshold_have_no_label():
    logits = torch.zeros(3, 100, 40)
    logits[1, :50], logits[2, 50:] = 10.0, 1.0  # probabilities of 1.0 and 0.58
    image = np.full((100, 40, 3), 128, np.uint8)
    seen = SegmentationPrediction(logits)
    assert seen.amounts(0.5) == {2: "50%", 1: "50%"} and seen.amounts(0.6) == {1: "50%"}
    labels = np.full((100, 40), 1)
    labels[50:] = 3  # no class
    np.testing.assert_array_equal(seen.draw(image, "abc", 0.6), draw_label_map(image, labels, 3))


def test_models_load_on_demand_and_few_stay(web, monkeypatch):
    loaded = []

    def load(cfg):
        loaded.append(cfg)
        return SimpleNamespace(cfg=cfg, guidance=None, class_names=get_class_names(cfg))

    monkeypatch.setattr(session, "Predictor", load)
    monkeypatch.setattr(session, "MODELS_KEPT", 2)  # the fixture of the page keeps more
    mask_rcnn, retinanet, semantic_fpn = names = [
        f"Shapes/denseclip_{system}_tiny.yaml" for system in ("mask_rcnn", "retinanet", "semantic_fpn")
    ]
    configs = {name: model_zoo.get_config(name, trained=True) for name in names}
    models = Models(configs)
    assert [label.split(":")[0] for label, _ in models.choices()] == ["Masks", "Boxes", "Segmentation"]
    for name in (mask_rcnn, retinanet, mask_rcnn, semantic_fpn, mask_rcnn, retinanet):
        assert models.get(name).cfg is configs[name]
    assert loaded == [configs[name] for name in (mask_rcnn, retinanet, semantic_fpn, retinanet)]
    page = web.Page(models, Limits())
    assert page.names_for(retinanet, ["blue solid square"]) == ["blue solid square"]
    assert page.names_for(retinanet, ["blue solid square", "a dog"]) == list(CLASS_NAMES[:3])
    assert "not language-guided" in page.about(retinanet) and "18 classes" in page.about(retinanet)


def test_files_are_removed_with_their_predictions(web, images):
    page = web.Page(Models({RETINANET: model_zoo.get_config(RETINANET, trained=True)}), Limits())
    thin = str(Path(images[0]).with_name("thin.png"))
    for size in ((1, 1), (900, 2)):
        Image.new("RGB", size).save(thin)
        outputs = page.predict(thin, None, RETINANET, NAMES, 0.4)
    outputs = page.predict(images[0], outputs[5], RETINANET, NAMES, 0.4)
    files = [Path(outputs[2]), Path(outputs[3])]
    assert all(file.is_file() for file in files)
    assert Image.open(files[0]).width == 3 * 480  # predictions and a heat map of each name
    del outputs
    assert not any(file.exists() for file in files)


def test_the_page_shows_no_traceback(web, monkeypatch):
    def fail(words):
        raise ValueError(words) if words else KeyError("secret")

    logged = []
    monkeypatch.setattr(web.logger, "exception", logged.append)
    with pytest.warns(UserWarning, match="&lt;script&gt;"):
        assert web.in_words(fail)("<script>") == '<p role="alert">&lt;script&gt;</p>'
    assert not logged
    with pytest.warns(UserWarning, match="unexpected error"):
        told, other = web.in_words(fail, None)("")
    assert other is None and "secret" not in told and logged


def test_the_tool_serves_its_model_and_the_zoo(web, monkeypatch, capsys):
    told = {}

    @contextmanager
    def serve_page(page, **where):
        told.update(where, page=page)
        yield "http://here/"

    def interrupt(event):
        raise KeyboardInterrupt

    monkeypatch.setattr(web, "serve_page", serve_page)
    monkeypatch.setattr(threading.Event, "wait", interrupt)
    own = "configs/Shapes/clip_semantic_fpn_tiny.yaml"
    run_tool_here(
        monkeypatch, TOOL, "--config-file", own, "--port", "8000", "--queue", "7", "MODEL.WEIGHTS", "w.pth"
    )
    assert "http://here/" in capsys.readouterr().out
    assert (told["host"], told["port"], told["page"].limits) == ("127.0.0.1", 8000, Limits(queue=7))
    configs = told["page"].models.configs
    assert [*configs] == [own, *model_zoo.trained_configs()] and RETINANET in configs
    assert configs[own].MODEL.WEIGHTS == "w.pth" != configs[RETINANET].MODEL.WEIGHTS


def test_errors_of_the_tool_say_what_is_wrong(monkeypatch):
    with pytest.raises(SystemExit, match="limit of side is 0"):
        run_tool_here(monkeypatch, TOOL, "--max-side", "0")
    with pytest.raises(SystemExit, match="error: There is no config 'nothing'"):
        run_tool_here(monkeypatch, TOOL, "--zoo", "nothing")
    monkeypatch.delitem(sys.modules, "denseclip_d2.web_demo.app", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r"needs Gradio: pip install gradio"):
        run_tool_here(monkeypatch, TOOL)

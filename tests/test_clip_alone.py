"""A CLIP alone: label maps and score maps by names, without training."""

import json
import re

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from architectures import clip_of
from conftest import run_tool_here
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from denseclip_d2 import Predictor, model_zoo
from denseclip_d2.checkpoint.clip_architecture import facts_of
from denseclip_d2.cli import demo
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.engine import Trainer
from denseclip_d2.evaluation import evaluate_pointing
from denseclip_d2.export.support import check_exportable
from denseclip_d2.model_zoo import clip_opts
from denseclip_d2.model_zoo.clip import BACKGROUND
from denseclip_d2.shapes.dataset import CLASS_NAMES, SEMANTIC_CLASS_NAMES
from denseclip_d2.shapes.scene import draw_scene
from denseclip_d2.visual import encoder_class
from denseclip_d2.web_demo.session import Models, predict

TINY = "denseclip://Shapes/clip_tiny"
NAMES = ["red circle", "striped square", "blue star"]
WHOLE = ["TEST.SLIDING_WINDOW.ENABLED", False]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.asarray(draw_scene(np.random.default_rng(3), 96, 128)[1])[:, :, ::-1].copy()


@pytest.fixture(scope="module")
def tiny() -> Predictor:
    return Predictor.from_clip(TINY, NAMES, opts=WHOLE)


def cosines(image: np.ndarray, names: list[str]) -> torch.Tensor:
    """Return the cosines of each cell and name by open_clip's text encoder, (1, K, h, w)."""
    clip = open_clip.create_model("RN-shapes-quickgelu").eval()
    clip.load_state_dict(load_file(model_zoo.zoo.local_file("Shapes/clip_tiny")))
    architecture = model_zoo.clip.get_clip_architecture("RN-shapes-quickgelu")
    kind = encoder_class(architecture)
    visual = kind(**kind.arguments_of(architecture), **kind.local_cells, norm="BN").eval()
    visual.load_state_dict(clip.visual.state_dict())
    pixels = F.interpolate(torch.tensor(image[:, :, ::-1].copy()).permute(2, 0, 1)[None].float(), (144, 192))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in model_zoo.clip.pixels_of("RN-shapes-quickgelu"))
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("RN-shapes-quickgelu")([f"a photo of a {name}." for name in names])
        text = clip.encode_text(tokens, normalize=True)
        cells = visual(F.pad((pixels - mean) / std, (0, 0, 0, 16)))["dense_embedding"]
    return torch.einsum("bchw,kc->bkhw", F.normalize(cells, dim=1), text)


def test_logits_are_the_enlarged_cosines_over_the_temperature(tiny):
    image = np.full((144, 192, 3), 90, np.uint8)  # resizing leaves this image as it is
    image[40:90, 60:120, 1] = 250
    assert tiny.tau == pytest.approx(0.066, abs=5e-4)  # the weights have it
    logits = F.interpolate(cosines(image, NAMES) / tiny.tau, scale_factor=16, mode="bilinear")[0, :, :144]
    assert_close(tiny(image)["sem_seg"], logits, atol=1e-2, rtol=1e-4)
    assert tiny.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3


def test_other_names_and_score_maps_need_no_other_model(tiny, image):
    before = tiny(image)["sem_seg"]
    given = tiny(image, ["blue star"], names=["green ring|ring", "blue star"])
    assert given["score_maps"].shape == (1, 96, 128) and given["score_maps"].abs().max() <= 1
    assert_close(given["sem_seg"][1], before[2])
    assert_close(tiny(image, names=NAMES[::-1])["sem_seg"], before.flip(0))


def test_precomputed_names_of_a_dataset_are_read_as_by_the_text_encoder(tiny, image, tmp_path, monkeypatch):
    file = tmp_path / "precomputed.safetensors"
    opts = clip_opts(TINY, ["MODEL.DENSECLIP.PROMPT.VOCABULARY", ("shapes_val",), *WHOLE])
    names = ["MODEL.DENSECLIP.CLASS_NAMES", ("red solid circle",), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1]
    config = model_zoo.get_config_file(model_zoo.CLIP_CONFIG)
    run_tool_here(
        monkeypatch, "convert_checkpoint.py", "--config-file", config, "--input", TINY, "--output", file,
        "--precompute-text", *opts, *names,
    )  # fmt: skip
    assert not any("transformer" in name for name in load_file(file))
    predictor = Predictor.from_files(file)
    again = [*predictor.model.backbone.language.precompute_().state_dict()]
    assert again == ["text_encoder.embeddings"]
    assert predictor.takes_names and predictor.class_names == ("red solid circle",)
    for given in (["blue striped square", "Red  solid circle|green striped triangle"], CLASS_NAMES):
        found, expected = (x(image, given[:1], names=given) for x in (predictor, tiny))
        for key in ("sem_seg", "score_maps", "heat_maps"):
            assert_close(found[key], expected[key], atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="'dog' is none of the 19 names"):
        predictor(image, names=["dog"])


def test_heat_maps_of_classes_are_the_probabilities_of_labels(tiny, image):
    found = tiny(image, ["blue star", "green ring"])
    assert_close(found["heat_maps"][0], found["sem_seg"].softmax(0)[2])
    assert_close(found["heat_maps"][1], (found["score_maps"][1] / tiny.tau).sigmoid())


def test_windows_have_clips_own_size_and_are_a_key(image):
    predictor = Predictor.from_clip(TINY, NAMES)
    window = predictor.model.sliding_window
    assert (window.size, window.stride) == ((96, 96), (48, 48))
    assert predictor(image)["sem_seg"].shape == (3, 96, 128)


def test_a_pixel_below_the_threshold_is_background(tiny, image):
    scores = tiny(image)["sem_seg"] * tiny.tau
    threshold = scores.amax(0).median().item()
    background = Predictor.from_clip(TINY, NAMES, background=threshold, opts=WHOLE)
    assert background.class_names == (*NAMES, BACKGROUND)
    found = background(image)["sem_seg"]
    assert_close(found[:3] * tiny.tau, scores)
    assert_close(found[3] * tiny.tau, torch.full((96, 128), threshold))
    assert ((found.argmax(0) == 3) == (scores.amax(0) < threshold)).float().mean() > 0.99  # up to rounding
    assert background(image, names=["dog"])["sem_seg"].shape == (1, 96, 128)
    assert background.with_background(["dog"]) == ["dog", BACKGROUND]


def test_pixels_of_names_of_backgrounds_are_background(tiny, image):
    words = ["wall", "red circle", "dotted square"]
    background = Predictor.from_clip(TINY, [BACKGROUND, "blue star"], background=words, opts=WHOLE)
    found = background(image)["sem_seg"]
    each = tiny(image, names=[*words, "blue star"])["sem_seg"]
    assert found.shape == (2, 96, 128)  # the name was there
    assert_close(found[1], each[3])
    assert (found[0] >= each[:3].amax(0) - 1e-3).all()  # the greatest of each cell, enlarged
    other = background(image, names=["blue star", BACKGROUND])["sem_seg"]
    assert_close(other, found.flip(0))


def test_weights_are_an_address_a_file_or_a_state_dict(tiny, image, tmp_path):
    weights = load_file(model_zoo.zoo.local_file("Shapes/clip_tiny"))
    torch.save({"state_dict": weights}, tmp_path / "clip.pt")
    for source in (weights, tmp_path / "clip.pt"):
        found = Predictor.from_clip(source, NAMES, opts=WHOLE)(image)["sem_seg"]
        assert torch.equal(found, tiny(image)["sem_seg"])
    with pytest.raises(FileNotFoundError, match=r"'none\.pt': there is no such file of a CLIP"):
        Predictor.from_clip("none.pt", NAMES)
    with pytest.raises(ValueError, match="does not hold both encoders of a CLIP"):
        Predictor.from_clip("denseclip://Shapes/denseclip_retinanet_tiny.yaml", NAMES)


@pytest.mark.parametrize("family", ["CLIPA", "worldwide", "Sigmoid"])
def test_the_shapes_of_weights_tell_the_architecture(family, tmp_path):
    torch.save(clip_of(family).state_dict(), tmp_path / "clip.pt")
    assert facts_of(str(tmp_path / "clip.pt")).architecture == f"tiny-{family}"


def test_an_unknown_architecture_asks_for_its_name(tmp_path):
    weights = clip_of("CLIPA").state_dict()
    weights["token_embedding.weight"] = weights["token_embedding.weight"][:100]
    torch.save(weights, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"no architecture of open_clip. Give .*CLIP_MODEL"):
        facts_of(str(tmp_path / "clip.pt"))
    opts = clip_opts(str(tmp_path / "clip.pt"), ["MODEL.DENSECLIP.CLIP_MODEL", "RN50"])
    values = dict(zip(opts[::2], opts[1::2], strict=True))
    assert values["MODEL.DENSECLIP.CLIP_MODEL"] == "RN50"
    assert values["MODEL.DENSECLIP.SCORE_MAP.TAU"] == pytest.approx(0.07)  # of an untrained CLIP


def test_the_address_of_openais_weights_means_the_quick_gelu():
    for name in ("ViT-B-16", "ViT-B-16-quickgelu"):
        assert facts_of(f"openclip://{name}/openai").architecture == "ViT-B-16-quickgelu"
    opts = clip_opts("openclip://ViT-B-16-SigLIP2-256/webli")
    values = dict(zip(opts[::2], opts[1::2], strict=True))
    assert values["MODEL.PIXEL_MEAN"] == [127.5] * 3
    assert values["TEST.SLIDING_WINDOW.SIZE"] == (256, 256)


def test_a_vit_alone_has_no_layer_that_its_weights_lack(image):
    clip = clip_of("CLIPA")
    predictor = Predictor.from_clip(clip.state_dict(), ["dog", "cat"])
    assert predictor(image)["sem_seg"].shape == (2, 96, 128)
    visual = predictor.model.backbone.visual
    assert {name for name, _ in visual.named_parameters()} == {x for x, _ in clip.visual.named_parameters()}


def test_a_clip_alone_is_evaluated_as_any_segmentor(semantic_shapes, tmp_path):
    opts = ["DATASETS.TEST", ("val",), "OUTPUT_DIR", str(tmp_path), *WHOLE, "INPUT.MIN_SIZE_TEST", 128]
    background = ["MODEL.DENSECLIP.STUFF_NAMES", ("wall", "noise")]
    cfg = model_zoo.get_clip_config(TINY, opts=[*opts, *background])
    assert len(SEMANTIC_CLASS_NAMES) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    results = Trainer.test(cfg, Predictor(cfg).model)["sem_seg"]
    assert results["mIoU"] > 5  # by chance: below 2
    assert {f"IoU-{name}" for name in SEMANTIC_CLASS_NAMES} <= results.keys()
    assert not any("Boundary" in name for name in results)
    assert "IoU_seen" not in results  # no class was trained


def test_the_command_line_evaluates_a_clip_alone(semantic_shapes, tmp_path, monkeypatch):
    run_tool_here(
        monkeypatch, "train_net.py", "--clip", TINY, "--eval-only", "DATASETS.TEST", "('val',)",
        "OUTPUT_DIR", tmp_path, *WHOLE, "DATALOADER.NUM_WORKERS", 0,
        "MODEL.DENSECLIP.SCORE_MAP.BACKGROUND_THRESHOLD", 0.3,
    )  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())["sem_seg"]
    assert results["mIoU"] > 20 and results["IoU-background"] > 50
    log = (tmp_path / "log.txt").read_text()
    assert re.search(rf"\| background +\| +{results['IoU-background']:.2f} \|", log)


@pytest.mark.parametrize("background", [["wall", "dotted noise"], ["0.3"]])
def test_the_demo_takes_a_clip_alone(background, image, tmp_path, monkeypatch):
    Image.fromarray(image[:, :, ::-1]).save(tmp_path / "a.png")
    run_tool_here(
        monkeypatch, "demo.py", "--clip", TINY, "--names", "red circle", "--background", *background,
        "--input", tmp_path / "a.png", "--output", tmp_path / "drawn", "--score-map", "blue star", *WHOLE,
    )  # fmt: skip
    assert (tmp_path / "drawn" / "a.png").is_file()
    found = json.loads((tmp_path / "drawn" / "detections.json").read_text())
    assert [x["name"] for x in found["categories"]] == ["red circle", BACKGROUND]


def test_a_background_belongs_to_a_clip_alone(monkeypatch):
    args = demo.build_parser().parse_args(
        ["--zoo", "a", "--input", "a", "--output", "a", "--names", "b", "--background", "sky"]
    )
    with pytest.raises(ValueError, match="--background needs --clip"):
        demo.config_of(args)


def test_score_maps_of_a_clip_alone_point_at_objects(small_shapes):
    records = load_datasets(small_shapes[1:], filter_empty=True, check_images=False)
    figures = evaluate_pointing(Predictor.from_clip(TINY, CLASS_NAMES[:9]), records, CLASS_NAMES)
    for kind in ("labeled", "unlabeled"):
        assert figures[kind]["pointing"] > 2 * figures[kind]["pointing_chance"]
        assert figures[kind]["auc"] > 0.7


def test_a_clip_alone_is_exported_as_any_segmentor(tiny, image):
    whole = check_exportable(tiny.cfg, "onnx")(tiny.model, shortest=144, longest=2048)
    with torch.no_grad():
        labels = whole(torch.from_numpy(image[:, :, ::-1].copy())[None])["labels"][0]
    assert (labels == tiny(image)["sem_seg"].argmax(0)).float().mean() > 0.98  # images are resized otherwise


@pytest.mark.parametrize(
    ("key", "value"), [("PROMPT.TEMPLATES", ("imagenet",)), ("SCORE_MAP.BACKGROUND_THRESHOLD", 0.3)]
)
def test_an_export_with_names_as_an_input_has_one_sentence_and_no_background(key, value):
    cfg = model_zoo.get_clip_config(TINY, NAMES, opts=[*WHOLE, f"MODEL.DENSECLIP.{key}", value])
    with pytest.raises(ValueError, match=rf"{key.partition('.')[2]}.*; convert the weights with --prec"):
        check_exportable(cfg, "onnx")


def test_the_braces_alone_are_a_template():
    cfg = model_zoo.get_clip_config(TINY, NAMES, opts=["MODEL.DENSECLIP.PROMPT.TEMPLATE", "{}"])
    assert cfg.MODEL.DENSECLIP.PROMPT.TEMPLATE == "{}"


@pytest.mark.parametrize("typed", [[], ["red circle", "blue star"]])
def test_the_web_page_takes_a_clip_alone(typed, image):
    models = Models({TINY: model_zoo.get_clip_config(TINY, opts=WHOLE)})
    assert models.choices() == [(f"Segmentation: {TINY}", TINY)]
    found = predict(models.get(TINY), image, typed, "a.png")
    assert len(found.class_names) == (len(typed) or 150)  # ADE20K's
    assert [*found.heat_maps] == typed and not found.unread
    assert found.draw(0.3).shape[2] == 3

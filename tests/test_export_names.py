"""Exported models that take any names: text embeddings as an input, and the file that makes them."""

import json
import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import load_script
from PIL import Image
from test_export_model import needs_onnx, needs_openvino
from test_open_vocabulary import NAMES, shapes_config

from denseclip_d2 import Predictor
from denseclip_d2.data.image_io import read_image
from denseclip_d2.evaluation.exported_file import evaluate_file
from denseclip_d2.export import FORMATS, export_model, files_of
from denseclip_d2.export.export_model import _shapes
from denseclip_d2.export.names import TOKENIZER, encoded_names, names_file
from denseclip_d2.export.support import check_exportable
from denseclip_d2.export.tokenizer_json import tokenizer_json
from denseclip_d2.language.tokenizers import clip_tokenizer
from denseclip_d2.meta_arch.text_heads import dense_predictions
from denseclip_d2.shapes.dataset import SEMANTIC_CLASS_NAMES

NEW = ("violet bar", "sofa|couch", "red circle", "dog", "garden gnome")
"""Names that are given after the export."""
SMALL = ["INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96]
THRESHOLDS = {"retinanet": "RETINANET", "mask_rcnn": "ROI_HEADS"}
PREDICTORS = ("head.", "roi_heads.box_", "sem_seg_head.predictor")


def telling_config(system: str, folder):
    """Return the config of an untrained model whose text, refined by the image, decides what it predicts."""
    cfg = shapes_config(system, folder)
    weights = torch.load(cfg.MODEL.WEIGHTS)
    generator = torch.Generator().manual_seed(0)
    for name, x in weights["model"].items():
        if name.startswith(PREDICTORS) and x.dim() > 1:
            x.copy_(torch.randn(x.shape, generator=generator) * (2 / x[0].numel()) ** 0.5)
        if name.endswith("language.gamma"):
            x.fill_(0.3)
        if name.endswith("classifier.bias"):
            x.zero_()
        if name.endswith("classifier.log_scale"):  # R-CNN's, which amplifies rounding, is for trained models
            x.fill_(math.log(10))
    torch.save(weights, cfg.MODEL.WEIGHTS)
    section = THRESHOLDS.get(system)
    cfg.merge_from_list([*SMALL, *([f"MODEL.{section}.SCORE_THRESH_TEST", 0.0] if section else [])])
    return cfg


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Export a model once. ``exported("retinanet", "onnx")`` returns config, file and verification."""
    done = {}

    def export(system: str, format: str, **options):
        if (system, format) not in done:
            folder = tmp_path_factory.mktemp(f"{system}_{format}")
            cfg, file = telling_config(system, folder), folder / FORMATS[format].file
            done[system, format] = cfg, file, export_model(cfg, file, format, **options)
        return done[system, format]

    return export


def found_by(file, format: str, image: np.ndarray, names=NEW) -> dict[str, np.ndarray]:
    with FORMATS[format].runtime(names_file(file)) as encode, FORMATS[format].runtime(file) as run:
        return run(image, encoded_names(encode, names, "{}"))


@needs_onnx
@pytest.mark.parametrize("format", ["onnx", pytest.param("openvino", marks=needs_openvino)])
def test_a_file_finds_names_that_are_given_after_the_export(exported, format):
    system = "mask_rcnn" if format == "openvino" else "retinanet"
    cfg, file, verdict = exported(system, format)
    assert verdict.detections > 10
    image = _shapes(7)
    expected = Predictor(cfg)(image, names=NEW)["instances"]
    given = found_by(file, format, np.ascontiguousarray(image[None, :, :, ::-1]))
    assert len(set(given["classes"])) > 1 and len(given["classes"]) == len(expected)
    np.testing.assert_allclose(given["scores"], expected.scores, atol=0.01)
    np.testing.assert_allclose(given["boxes"][:10], expected.pred_boxes.tensor[:10], atol=0.5)
    np.testing.assert_array_equal(given["classes"][:10], expected.pred_classes[:10])


@needs_onnx
def test_the_learned_background_follows_the_given_names(exported):
    cfg, file, verdict = exported("semantic_fpn", "onnx", preprocessed=True, score_map=True)
    assert verdict.cosines < 1e-4 and verdict.pixel_mismatch <= 1e-3
    model = Predictor(cfg).model
    images = torch.randn(3, 3, 64, 96)  # as many as the file has not seen
    with torch.no_grad():
        model.set_class_names(["dog", "background"])
        features = model.backbone(images)
    given = found_by(file, "onnx", images.numpy(), ["dog"])
    np.testing.assert_allclose(given["score_map"], features["score_map"], atol=1e-4)
    assert set(np.unique(given["labels"])) == {0, 1}


def test_a_file_of_fixed_sizes_takes_as_many_names_as_the_training(exported, monkeypatch):
    kind = replace(FORMATS["torch_export"], sizes="given")  # as of executorch and litert
    monkeypatch.setitem(FORMATS, "fixed", kind)
    cfg, file, verdict = exported("retinanet", "fixed", preprocessed=True, size=(64, 96))
    assert verdict.detections > 10
    names, images = ["dog", "sofa|couch", "garden gnome"], torch.randn(1, 3, 64, 96)
    model = Predictor(cfg).model
    with torch.no_grad():
        model.set_class_names(names)
        predictions = dense_predictions(model, model.backbone(images))
    expected, _ = model._transpose_dense_predictions(predictions, [len(names), 4])
    with kind.runtime(names_file(file)) as encode, kind.runtime(file) as run:
        text = encoded_names(encode, names, "{}", length=31)
        np.testing.assert_allclose(run(images.numpy(), text)["logits"], torch.cat(expected, dim=1), atol=1e-4)
        with pytest.raises(ValueError, match="torch_export failed for inputs of .* and .2, 64."):
            run(images.numpy(), text[:2])


@needs_onnx
def test_the_files_say_how_to_use_them(exported):
    import onnx

    for system, learned in (("retinanet", []), ("semantic_fpn", ["background"])):
        _, file, _ = exported(system, "onnx", preprocessed=True, score_map=True)
        whole, names = onnx.load(file), onnx.load(names_file(file))
        for model in (whole, names):
            about = {x.key: x.value for x in model.metadata_props}
            assert json.loads(about["class_names"]) == list(NAMES)  # without the learned name
            assert json.loads(about["learned_names"]) == learned
            assert (about["prompt"], about["most_tokens"]) == ("{}", "31")
        shapes = [
            [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim]
            for x in (whole.graph.input[1], *names.graph.input, *names.graph.output)
        ]
        assert shapes == [["names", 64], ["words", "tokens"], ["words", 64]]
        assert not any("token_embedding" in x.name for x in whole.graph.initializer)
        assert (file.parent / TOKENIZER).read_text() == tokenizer_json()


@needs_onnx
def test_both_files_store_float16(exported, tmp_path):
    cfg, whole, _ = exported("retinanet", "onnx")
    Image.fromarray(_shapes(0)[:, :, ::-1]).save(tmp_path / "0.png")
    file = tmp_path / "model.onnx"
    verdict = export_model(cfg, file, "onnx", precision="float16", images=[str(tmp_path / "0.png")])
    assert verdict.parts["boxes"] > 0.99
    for half, full in ((file, whole), (names_file(file), names_file(whole))):
        assert half.stat().st_size < 0.6 * full.stat().st_size


def test_names_that_no_file_can_encode_are_refused(tmp_path):
    cfg = shapes_config("retinanet", tmp_path)
    assert files_of(cfg, "torch_export") == ["model.pt2", "names.pt2", "tokenizer.json", "decode.py"]
    assert files_of(cfg, "aoti")[:2] == ["model.aoti.pt2", "names.aoti.pt2"]
    assert files_of(cfg, "executorch")[:2] == ["model.pte", "names.pte"]
    cfg.MODEL.DENSECLIP.NAME_BIAS = True
    with pytest.raises(ValueError, match="NAME_BIAS is True, and an exported file sees no names; convert"):
        check_exportable(cfg, "onnx")
    cfg.merge_from_list(["MODEL.DENSECLIP.NAME_BIAS", False, "MODEL.DENSECLIP.PROMPT.MODE", "random"])
    with pytest.raises(ValueError, match="PROMPT.MODE is 'random', whose text no encoder makes"):
        check_exportable(cfg, "onnx")
    cfg.merge_from_list(
        ["MODEL.DENSECLIP.PROMPT.MODE", "post", "MODEL.DENSECLIP.CLIP_MODEL", "ViT-B-16-SigLIP"]
    )
    with pytest.raises(ValueError, match="tokenizer that is not CLIP's; .*--precompute-text"):
        check_exportable(cfg, "onnx")
    cfg.MODEL.DENSECLIP.PROMPT.PRECOMPUTED = True  # the names are then those of the file
    assert files_of(cfg, "onnx") == ["model.onnx"]


def test_the_tokenizer_beside_a_file_reads_as_open_clips():
    tokenizers = pytest.importorskip("tokenizers")
    names = ["Red  circle", "dog's bed", "naïve café", "100m", "tv/monitor (old)", "日本語", "😀 face", "x_y"]
    ids = clip_tokenizer().encode(names)
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json())
    longest = max(map(len, ids))
    assert [x.ids for x in tokenizer.encode_batch(names)] == [x + [0] * (longest - len(x)) for x in ids]
    assert 49406 not in tokenizer.encode("<start_of_text>").ids[1:]  # plain words, not the special token


@needs_onnx
def test_the_example_encodes_names_as_the_predictor_does(exported):
    pytest.importorskip("tokenizers")
    cfg, file, _ = exported("retinanet", "onnx")
    language = Predictor(cfg).model.backbone.language
    given = load_script("examples/detect.py").encode(list(NEW), file.parent, "onnxruntime")
    np.testing.assert_allclose(given, language.encode_names(NEW, language.contexts)[0], atol=1e-4)


def test_a_file_is_evaluated_with_the_names_of_the_dataset(semantic_shapes, tmp_path, monkeypatch):
    """The file finds what is there. Its learned name is the last class, and the data set's is another."""
    cfg = shapes_config("semantic_fpn", tmp_path)
    cfg.merge_from_list(["DATASETS.TEST", ("val",), "OUTPUT_DIR", str(tmp_path)])
    images = {read_image(str(x)).tobytes(): x for x in (semantic_shapes / "val").glob("*.png")}
    background = "background"

    @contextmanager
    def runtime(file):
        def encode(token_ids):
            return {"text_embeddings": np.zeros((len(token_ids), 8), np.float32)}

        def run(pixels, text):
            path = images[pixels[0, :, :, ::-1].tobytes()]
            labels = np.array(Image.open(semantic_shapes / "labels" / "val" / path.name)).astype(np.int64)
            order = [x for x in SEMANTIC_CLASS_NAMES if x != background] + [background]
            assert len(text) == len(order) - 1
            return {"labels": np.array([order.index(x) for x in SEMANTIC_CLASS_NAMES])[labels][None]}

        yield encode if file.name.startswith("names") else run

    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], runtime=runtime))
    results = evaluate_file(cfg, tmp_path / "model.onnx", "onnx")["val"]["sem_seg"]
    assert results["mIoU"] == pytest.approx(100) and results["IoU_unseen"] == pytest.approx(100)

"""Which names get the objects of a dataset, by their boxes, masks and crops."""

import json
import re

import numpy as np
import open_clip
import pytest
import torch
from conftest import run_tool_here
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from configs import prepared_cfg
from denseclip_d2 import Predictor, model_zoo
from denseclip_d2.engine import Trainer
from denseclip_d2.evaluation.build import check_test_sets
from denseclip_d2.evaluation.regions import CropClassifier, RegionEvaluator
from denseclip_d2.shapes.dataset import CLASS_NAMES

TINY = "denseclip://Shapes/clip_tiny"
NAMES = ["cat", "dog", "cow"]
# In 8 x 10 pixels: a cat with a mask, a cat, a dog that leaves the image, a crowd, a dog outside, a thin cat.
OBJECTS = [
    {"bbox": [0, 0, 4, 8], "category_id": 0, "segmentation": [[0, 0, 2, 0, 2, 8, 0, 8]]},
    {"bbox": [4, 0, 6, 4], "category_id": 0},
    {"bbox": [5.2, 0, 9, 6.7], "category_id": 1},
    {"bbox": [0, 0, 10, 8], "category_id": 1, "iscrowd": 1},
    {"bbox": [20, 0, 5, 5], "category_id": 1},
    {"bbox": [0, 0, 8, 1], "category_id": 0},
]


@pytest.fixture
def evaluator(catalogs):
    objects = [{"bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0, **x} for x in OBJECTS]
    record = {"file_name": "a.png", "height": 8, "width": 10, "annotations": objects}
    DatasetCatalog.register("zoo", lambda: [record, {**record, "file_name": "b.png", "annotations": []}])
    MetadataCatalog.get("zoo").set(thing_classes=NAMES, evaluator_type="coco")

    def crops(file_name, boxes):
        assert file_name == "a.png"
        np.testing.assert_allclose(boxes, [[0, 0, 4, 8], [4, 0, 10, 4], [5.2, 0, 14.2, 6.7]])
        return torch.tensor([[0.1, 0.0, 0.0], [0.1, 0.2, 0.0], [0.0, 0.0, 0.1]])

    return RegionEvaluator("zoo", crops, min_size=1)


def test_objects_are_counted_by_box_mask_and_crop(evaluator):
    scores = torch.zeros(3, 8, 10)
    scores[0, :, :2] = 1  # the cat's mask; in its box, the dog has more
    scores[1, :, 2:] = 2
    for image in ("a.png", "b.png"):
        evaluator.process([{"file_name": image}], [{"sem_seg": scores}])
    found = evaluator.evaluate()
    half = {"mACC": 50.0, "objects": 3, "ACC-cat": 0.0, "ACC-dog": 100.0}
    assert found["box"] == {**half, "top1": pytest.approx(100 / 3)}
    assert found["mask"] == {"mACC": 100.0, "top1": 100.0, "objects": 1, "ACC-cat": 100.0}
    assert found["crop"] == {
        "mACC": 25, "top1": pytest.approx(100 / 3), "objects": 3, "ACC-cat": 50, "ACC-dog": 0,
    }  # fmt: skip
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_a_crop_has_clips_embedding_of_the_square_around_the_box(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 150, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = Predictor.from_clip(TINY, NAMES).model
    classify = CropClassifier(model, (96, 96), "RGB")
    boxes = [(10, 20, 106, 40), (130, 0, 150, 96), (149.9, 95.9, 180, 120)]
    found = classify(str(tmp_path / "a.png"), boxes)

    clip = open_clip.create_model("RN-shapes-quickgelu").eval()
    clip.load_state_dict(load_file(model_zoo.zoo.local_file("Shapes/clip_tiny")))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in model_zoo.clip.pixels_of("RN-shapes-quickgelu"))
    tokens = open_clip.get_tokenizer("RN-shapes-quickgelu")([f"a photo of a {name}." for name in NAMES])
    squares = [pixels[:78, 10:106], pixels[:, 92:], pixels[93:, 149:]]  # the image has no more of them
    resized = [np.asarray(Image.fromarray(x).resize((96, 96), Image.Resampling.BICUBIC)) for x in squares]
    with torch.no_grad():
        batch = (torch.tensor(np.stack(resized)).permute(0, 3, 1, 2) - mean) / std
        expected = clip.encode_image(batch, normalize=True) @ clip.encode_text(tokens, normalize=True).T
    assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_own_boxes_are_evaluated_by_one_command(small_shapes, tmp_path, monkeypatch):
    root = small_shapes[0]
    run_tool_here(
        monkeypatch, "train_net.py", "--clip", TINY, "--eval-only",
        "--val", root / "annotations/instances_val.json", root / "val",
        "OUTPUT_DIR", tmp_path / "out", "INPUT.MIN_SIZE_TEST", 128, "DATALOADER.NUM_WORKERS", 0,
        "TEST.SLIDING_WINDOW.ENABLED", False,
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {*results} == {"box", "mask", "crop"}
    for metrics in results.values():
        assert metrics["objects"] > 10 and metrics["mACC"] > 3 * 100 / len(CLASS_NAMES)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert re.search(r"\| class +\| +objects \| +box \| +mask \| +crop \|", log)


def test_a_trained_segmentor_of_any_names_has_no_crops(small_shapes):
    cfg = prepared_cfg(
        "configs/Shapes/denseclip_semantic_fpn_text_tiny.yaml",
        ["DATASETS.TEST", small_shapes[2:], "DATALOADER.NUM_WORKERS", 0,
         "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 96],
    )  # fmt: skip
    check_test_sets(cfg)
    assert {*Trainer.test(cfg, Trainer.build_model(cfg).eval())} == {"box", "mask"}

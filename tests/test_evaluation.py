import argparse
import json
import math
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeTransform
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from torch import nn
from torch.testing import assert_close

from denseclip_d2.cli import train_net
from denseclip_d2.config import load_config
from denseclip_d2.engine import Trainer
from denseclip_d2.inference import RetinaNetWithTTA, with_tta
from denseclip_d2.shapes.dataset import CLASS_NAMES

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"
MASK_RCNN = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN", "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_denseclip_fpn_backbone",
    "MODEL.FPN.IN_FEATURES": "['res2', 'res3', 'res4', 'res5']",
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[8], [16], [32], [64], [128]]",
    "MODEL.RPN.IN_FEATURES": "['p2', 'p3', 'p4', 'p5', 'p6']",
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES": 18,
    "MODEL.ROI_HEADS.IN_FEATURES": "['p2', 'p3', 'p4', 'p5']", "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead", "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
}  # fmt: skip


@pytest.fixture
def options(small_shapes, tmp_path):
    """Return ``KEY VALUE`` pairs of the tiny config with few images, test-time augmentation and more."""
    _, train, val = small_shapes

    def make(**opts) -> list[str]:
        opts = {
            "DATASETS.TRAIN": f"('{train}',)", "DATASETS.TEST": f"('{val}',)", "DATALOADER.NUM_WORKERS": 0,
            "SOLVER.MAX_ITER": 1, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.STEPS": "()", "SOLVER.WARMUP_ITERS": 0,
            "OUTPUT_DIR": tmp_path / "output", "INPUT.MIN_SIZE_TEST": 96,
            "TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": "(96,)", "TEST.AUG.FLIP": False, **opts,
        }  # fmt: skip
        return [str(x) for pair in opts.items() for x in pair]

    return make


@pytest.fixture
def config(options):
    return lambda **opts: load_config(CONFIG, options(**opts))


def decisive(model: nn.Module) -> nn.Module:
    """Return a RetinaNet with random weights whose scores differ enough to be ranked."""
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        model.head.cls_score.weight *= 5
    return model.eval()


def images_of(cfg) -> list[dict]:
    return [x for batch in Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]) for x in batch]


def detect(model: nn.Module, image: dict) -> Instances:
    with torch.no_grad():
        return model([image])[0]["instances"]


def assert_same_detections(ours: Instances, theirs: Instances) -> None:
    assert ours.image_size == theirs.image_size
    assert len(ours) == len(theirs) > 20
    assert_close(ours.scores, theirs.scores, atol=1e-5, rtol=1e-4)
    assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, atol=1e-2, rtol=1e-4)
    assert_close(ours.pred_classes, theirs.pred_classes)


def test_one_copy_as_it_is_gives_the_plain_detections(config):
    """The images are resized for the detector. The boxes refer to the original size."""
    cfg = config()
    model = decisive(Trainer.build_model(cfg))
    for image in images_of(cfg):
        assert image["image"].shape[1:] != (image["height"], image["width"])
        assert_same_detections(detect(with_tta(cfg, model), image), detect(model, image))


def test_one_resized_copy_gives_the_plain_detections_on_the_resized_image(config):
    cfg = config(**{"TEST.AUG.MIN_SIZES": "(160,)", "TEST.AUG.MAX_SIZE": 400})
    model = decisive(Trainer.build_model(cfg))
    image = images_of(cfg)[0]
    pixels = image["image"].permute(1, 2, 0).numpy()
    scale = 160 / min(pixels.shape[:2])
    sides = [int(side * scale + 0.5) for side in pixels.shape[:2]]
    resized = ResizeTransform(*pixels.shape[:2], *sides).apply_image(pixels)
    expected = detect(model, {**image, "image": torch.from_numpy(resized).permute(2, 0, 1)})
    assert_same_detections(detect(with_tta(cfg, model), image), expected)


def test_an_image_and_its_mirror_give_mirrored_detections(config):
    cfg = config(**{"TEST.AUG.FLIP": True})
    model = decisive(Trainer.build_model(cfg))
    augmented = with_tta(cfg, model)
    image = images_of(cfg)[0]
    mirror = {**image, "image": image["image"].flip(2)}
    ours, mirrored = detect(augmented, image), detect(augmented, mirror)
    left, top, right, bottom = mirrored.pred_boxes.tensor.unbind(1)
    width = image["width"]
    mirrored.pred_boxes = Boxes(torch.stack([width - right, top, width - left, bottom], dim=1))
    assert_same_detections(ours, mirrored)
    assert not torch.equal(ours.scores, detect(model, image).scores)


class BrightPixels(nn.Module):
    """A detector of the box around bright pixels. Its score grows with the image size."""

    test_nms_thresh, max_detections_per_image = 0.5, 100

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        self.seen.append([tuple(x["image"].shape[1:]) for x in batched_inputs])
        return [{"instances": self.detect(x["image"])} for x in batched_inputs]

    def detect(self, image: torch.Tensor) -> Instances:
        rows, columns = torch.nonzero(image[0] > 127).unbind(1)
        corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes = Boxes(torch.stack(corners)[None].float())
        score, category = torch.tensor([image.shape[1] / 1000]), torch.tensor([int(image.shape[1] > 150)])
        return Instances(tuple(image.shape[1:]), pred_boxes=boxes, scores=score, pred_classes=category)


def test_copies_agree_on_a_box_and_keep_the_best_score_of_each_class():
    """One bright rectangle in six copies: detected in each, and returned once per class."""
    model = BrightPixels()
    mapper = DatasetMapperTTA(min_sizes=[50, 100, 200], max_size=1000, flip=True)
    image = np.zeros((100, 140, 3), dtype=np.uint8)
    image[20:60, 10:90] = 255
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    instances = RetinaNetWithTTA(model, mapper, 2)([{"image": tensor, "height": 200, "width": 280}])
    instances = instances[0]["instances"]
    assert instances.image_size == (200, 280)
    assert_close(instances.scores, torch.tensor([0.2, 0.1]))
    assert_close(instances.pred_classes, torch.tensor([1, 0]))
    expected = torch.tensor([[20.0, 40.0, 180.0, 120.0]]).expand(2, 4)
    assert_close(instances.pred_boxes.tensor, expected, atol=2.0, rtol=0.0)
    # A batch has copies of one size, because padding would change the detector's input.
    assert model.seen == [[(50, 70)] * 2, [(100, 140)] * 2, [(200, 280)] * 2]
    unsized = RetinaNetWithTTA(model, mapper)([{"image": tensor}])[0]["instances"]
    assert_close(unsized.pred_boxes.tensor, expected / 2, atol=1.0, rtol=0.0)


def test_masks_are_augmented_on_the_language_guided_pyramid(config):
    """With one copy, Detectron2's wrapper returns the plain model's masks. With six, the sizes are equal."""
    cfg = config(**MASK_RCNN)
    model = Trainer.build_model(cfg).eval()
    image = images_of(cfg)[0]
    plain, augmented = detect(model, image), with_tta(cfg, model)
    assert isinstance(augmented, GeneralizedRCNNWithTTA)
    assert_same_detections(detect(augmented, image), plain)
    assert (detect(augmented, image).pred_masks != plain.pred_masks).float().mean() < 1e-3
    cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (64, 96, 128), "TEST.AUG.FLIP", True])
    several = detect(with_tta(cfg, model), image)
    assert len(several) == len(several.pred_masks) > 20
    assert several.pred_masks.shape[1:] == (image["height"], image["width"])


def test_the_wrapper_leaves_the_models_mode_alone(config):
    cfg = config()
    model = Trainer.build_model(cfg)
    for training in (True, False):
        model.train(training)
        Trainer.test_with_tta(cfg, with_tta(cfg, model))
        assert model.training == model.backbone.training == training


def test_models_without_augmentation_are_refused_before_training(config):
    """A list of sizes without a size is refused too."""
    cfg = config(**{"TEST.AUG.MIN_SIZES": "()"})
    with pytest.raises(ValueError, match=r"TEST.AUG.MIN_SIZES is empty"):
        Trainer(cfg)
    with pytest.raises(ValueError, match="no test-time augmentation of Linear"):
        with_tta(config(), nn.Linear(1, 1))


def evaluate_only(opts: list[str]) -> dict:
    """Return the results of ``tools/train_net.py --eval-only``."""
    args = argparse.Namespace(
        config_file=CONFIG, opts=opts, eval_only=True, resume=False, allow_partial=False
    )
    return train_net.train(args)


def final_metrics(output: Path) -> dict[str, float]:
    lines = (output / "metrics.json").read_text().splitlines()
    return {key: value for line in lines for key, value in json.loads(line).items()}


@pytest.mark.parametrize("tasks, opts", [(("bbox",), {}), (("bbox", "segm"), MASK_RCNN)])
def test_evaluation_gives_every_class_and_predictions_in_cocos_format(options, small_shapes, tasks, opts):
    """After training, and equally from its checkpoint: with and without augmentation."""
    opts = options(
        **{
            "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
            "TEST.AUG.MIN_SIZES": "(64, 96)",
            "TEST.OPTIMIZE_FOR_INFERENCE": False,
            **opts,
        }
    )
    cfg = load_config(CONFIG, opts)
    Trainer(cfg).train()
    output = Path(cfg.OUTPUT_DIR)
    metrics = final_metrics(output)
    root, _, val = small_shapes
    truth = COCO(str(root / "annotations/instances_val.json"))
    files = [output / f / val / "coco_instances_results.json" for f in ("inference", "inference_TTA")]
    for file in files:
        found = truth.loadRes(str(file))
        assert len(found.getAnnIds()) > 100
        assert set(found.getCatIds()) == set(truth.getCatIds())
    keys = {f"{task}{suffix}" for task in tasks for suffix in ("", "_TTA")}
    assert all(f"{key}/AP-{name}" in metrics for key in keys for name in CLASS_NAMES)
    assert all(math.isfinite(metrics[f"{key}/AP"]) for key in keys)
    predictions = [file.read_text() for file in files]
    assert predictions[0] != predictions[1]
    results = evaluate_only([*opts, "MODEL.WEIGHTS", str(output / "model_final.pth")])
    assert predictions == [file.read_text() for file in files]
    assert set(results) == keys
    for key in keys:
        assert results[key]["AP50"] == pytest.approx(metrics[f"{key}/AP50"], abs=1e-6)


@pytest.mark.parametrize("opts", [{"MODEL.RETINANET.SCORE_THRESH_TEST": 1.0}, MASK_RCNN], ids=["box", "mask"])
def test_a_model_that_finds_nothing_has_nan_for_ap_and_finishes_training(config, opts):
    cfg = config(**{**opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0, "TEST.AUG.FLIP": True})
    Trainer(cfg).train()
    metrics = final_metrics(Path(cfg.OUTPUT_DIR))
    for task in ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",):
        assert math.isnan(metrics[f"{task}/AP"]) and math.isnan(metrics[f"{task}_TTA/AP"])
    assert (Path(cfg.OUTPUT_DIR) / "model_final.pth").exists()


def test_expected_results_can_be_those_of_augmentation(config):
    """Detectron2's check at the end of training exits if a number differs from the expected one."""
    cfg = config(**{"TEST.EXPECTED_RESULTS": "[['bbox_TTA', 'AP', 50.0, 0.01]]"})
    with pytest.raises(SystemExit):
        Trainer(cfg).train()
    cfg.TEST.EXPECTED_RESULTS = [["bbox_TTA", "AP", 0.0, 100.0]]
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    Trainer(cfg).train()


def test_coco_is_evaluated_by_hotcoco_with_the_figures_of_pycocotools(config, monkeypatch):
    hotcoco = pytest.importorskip("hotcoco")
    cfg = config()
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    model = Trainer.build_model(cfg)
    with patch.object(hotcoco, "COCOeval", wraps=hotcoco.COCOeval) as evaluation:
        fast = Trainer.test(cfg, model)
    assert evaluation.call_count == 1
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    np.testing.assert_equal(Trainer.test(cfg, model), fast)
    assert math.isfinite(fast["bbox"]["AP"])

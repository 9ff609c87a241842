"""LVIS: readable names, the federated loss, repeat factor sampling, LVIS's evaluation."""

import json
import math
from collections import Counter
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta, register_lvis_instances
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from detectron2.structures import Boxes, Instances
from detectron2.structures.masks import polygons_to_bitmask
from PIL import Image, ImageDraw
from test_engine import final_metrics
from torch.testing import assert_close

from denseclip_d2.checkpoint import DenseCLIPCheckpointer
from denseclip_d2.config import load_config
from denseclip_d2.data import checks, clean_class_names, get_class_names
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.engine import Trainer
from denseclip_d2.language.prompts import check_class_names, tokenize_names
from denseclip_d2.report.detections import read_detections

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs/LVIS-InstanceSegmentation"
FREQUENT, RARE = 3, 13  # airplane and applesauce, ordered by id as in the files
COLORS = {FREQUENT: "red", RARE: "blue"}
SIZE = (96, 64)

TINY = f"""
_BASE_: ["{CONFIGS}/Base-MaskRCNN-LVIS.yaml", "{ROOT}/configs/Shapes/Base-tiny.yaml"]
MODEL:
  WEIGHTS: ""
  RPN: {{POST_NMS_TOPK_TRAIN: 20, POST_NMS_TOPK_TEST: 10}}
  ROI_HEADS: {{BATCH_SIZE_PER_IMAGE: 16}}
  ROI_BOX_HEAD: {{FC_DIM: 16, NUM_FC: 1}}
  ROI_MASK_HEAD: {{CONV_DIM: 8, NUM_CONV: 1, POOLER_RESOLUTION: 4}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 2, STEPS: [], WARMUP_ITERS: 0, BEST_METRIC: "bbox/AP"}}
DATALOADER: {{NUM_WORKERS: 0}}
TEST: {{DETECTIONS_PER_IMAGE: 20, EVAL_PERIOD: 1}}
"""

needs_lvis = pytest.mark.skipif(
    find_spec("lvis") is None, reason="the package lvis is not installed: make install"
)


def write_lvis(root: Path, split: str, count: int) -> Path:
    """Write images with annotations like LVIS. Only the first image has the rare class."""
    (root / split).mkdir(parents=True)
    images, annotations = [], []
    for i in range(1, count + 1):
        name, image = f"{i:012}.jpg", Image.new("RGB", SIZE, "gray")
        for category in [FREQUENT, RARE] if i == 1 else [FREQUENT]:
            x, y, side = (8 + i, 8, 24) if category == FREQUENT else (60, 30, 20)
            ImageDraw.Draw(image).rectangle((x, y, x + side, y + side), fill=COLORS[category])
            polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": i, "category_id": category, "area": side**2,
                    "bbox": [x, y, side, side], "segmentation": [polygon],
                }
            )  # fmt: skip
        image.save(root / split / name)
        images.append(
            {
                "id": i, "width": SIZE[0], "height": SIZE[1], "coco_url": f"http://nowhere/{split}/{name}",
                "neg_category_ids": [RARE] if i > 1 else [7], "not_exhaustive_category_ids": [],
            }
        )  # fmt: skip
    categories = [{**c, "name": c["synonyms"][0]} for c in LVIS_CATEGORIES]
    file = root / f"{split}.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


@pytest.fixture
def config(tmp_path):
    """Return the config of a small detector of LVIS's 1203 classes on a dozen images, some for testing."""
    names = [f"{tmp_path.name}_lvis_v1_{split}" for split in ("train", "val")]
    for name, split, count in zip(names, ("train2017", "val2017"), (8, 4), strict=True):
        file = write_lvis(tmp_path / "coco", split, count)
        register_lvis_instances(name, get_lvis_instances_meta(name), str(file), f"{tmp_path}/coco/")
    path = tmp_path / "config.yaml"
    path.write_text(TINY)
    train, test = ((name,) for name in names)
    yield load_config(
        str(path),
        ["DATASETS.TRAIN", train, "DATASETS.TEST", test, "OUTPUT_DIR", str(tmp_path / "output")],
    )
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


# Names


def test_the_1203_names_are_words_and_each_is_one_classs_alone():
    cfg = load_config(str(CONFIGS / "denseclip_mask_rcnn_RN50_FPN_1x.yaml"), [])
    names = get_class_names(cfg)
    assert len(set(names)) == 1203
    check_class_names(names)
    assert not any(set(name) & set("_(),") for name in names)
    assert {"aerosol can", "bow weapon", "bow decorative ribbons", "fish", "flip-flop sandal"} <= set(names)
    ids = tokenize_names(names, cfg.MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS)
    assert ids.shape == (1203, 9)
    assert len(ids.unique(dim=0)) == 1203


def test_names_that_would_read_the_same_stay_as_they_are():
    assert clean_class_names(["a_b", "a b", "c_(d)", "c, d"]) == ("a_b", "a b", "c d", "c")
    assert clean_class_names(["class_07", "dining table"]) == ("class 07", "dining table")
    # A comma would separate names at test time.
    assert clean_class_names(["bank, shore", "bank", "shore"], synonyms=True)[0] == "bank shore"


# Configs


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*_1x.yaml")), ids=lambda path: path.stem)
def test_configs_are_detectron2s_for_lvis(path):
    cfg = load_config(str(path), [])
    head = cfg.MODEL.ROI_BOX_HEAD
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("lvis_v1_train",), ("lvis_v1_val",))
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.TEST.DETECTIONS_PER_IMAGE) == (1203, 300)
    assert head.USE_FED_LOSS and head.USE_SIGMOID_CE
    assert cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    guided = path.stem.startswith("denseclip")
    assert (cfg.MODEL.META_ARCHITECTURE == "DenseCLIPMaskRCNN") == guided
    assert cfg.MODEL.WEIGHTS.startswith(f"openclip://{cfg.MODEL.DENSECLIP.CLIP_MODEL}/")


# Training and evaluation


@needs_lvis
def test_a_detector_trains_by_the_federated_loss_and_is_evaluated_as_lvis_does(config):
    trainer = Trainer(config)
    predictor = trainer.model.roi_heads.box_predictor
    weights = predictor.fed_loss_cls_weights
    assert len(weights) == 1203
    torch.testing.assert_close(weights[:3] ** 2, torch.tensor([64.0, 364.0, 1911.0]))  # LVIS's images
    contexts = trainer.model.backbone.language.contexts.detach().clone()
    trainer.resume_or_load(resume=False)
    trainer.train()
    asked = predictor.cls_score.weight.grad.any(dim=1)
    assert asked[FREQUENT - 1]
    assert asked.sum() <= config.MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES  # not all 1203
    assert not torch.equal(trainer.model.backbone.language.contexts, contexts)
    metrics = final_metrics(Path(config.OUTPUT_DIR))
    name = config.DATASETS.TEST[0]
    found = read_detections(name, Path(config.OUTPUT_DIR, "inference", name), ("bbox", "segm"))
    assert len(found.metrics) == 18
    for key, value in found.metrics.items():  # also for rare, common and frequent classes, for the report
        logged = metrics[key] if metrics[key] >= 0 else math.nan  # LVIS has -100 here
        assert_close(float(value), logged, atol=1e-9, rtol=1e-9, equal_nan=True, msg=key)
    assert found.objects.nonzero()[0].tolist() == [FREQUENT - 1, RARE - 1]
    assert metrics["loss_pixel_text"] > 0
    for task in ("bbox", "segm"):
        assert all(math.isfinite(metrics[f"{task}/{name}"]) for name in ("AP", "APr", "APc", "APf"))
    assert (Path(config.OUTPUT_DIR) / "model_best.pth").exists()

    again = Trainer.build_model(config)
    DenseCLIPCheckpointer(again, for_training=False).load(f"{config.OUTPUT_DIR}/model_final.pth")
    results = Trainer.test(config, again)
    assert results["bbox"]["AP"] == pytest.approx(metrics["bbox/AP"])


@needs_lvis
def test_perfect_detections_have_an_ap_of_100(config):
    """The categories say which classes are rare, common and frequent. Here two of them have objects."""
    (name,) = config.DATASETS.TEST
    evaluator = Trainer.build_evaluator(config, name)
    evaluator.reset()
    for record in load_datasets([name], filter_empty=False, check_images=True):
        evaluator.process([record], [{"instances": found(record)}])
    results = evaluator.evaluate()
    kinds = {c["frequency"] for c in LVIS_CATEGORIES if c["id"] in COLORS}
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)
        assert {kind for kind in "rcf" if results[task][f"AP{kind}"] > 99} == kinds


@needs_lvis
@pytest.mark.parametrize("exhaustive", [True, False])
def test_false_boxes_of_a_class_that_is_not_marked_throughout_do_not_count(tmp_path, exhaustive):
    """Neither in LVIS's metrics nor in the report."""
    file = write_lvis(tmp_path / "coco", "val2017", 2)
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["not_exhaustive_category_ids"] = [] if exhaustive else [FREQUENT]
    file.write_text(json.dumps(content))
    name = f"{tmp_path.name}_marked_lvis_v1_val"
    register_lvis_instances(name, get_lvis_instances_meta(name), str(file), str(tmp_path))
    results = [
        {"image_id": 1, "category_id": FREQUENT, "bbox": box, "score": score}
        for box, score in (([60.0, 5.0, 9.0, 9.0], 0.9), (content["annotations"][0]["bbox"], 0.8))
    ]
    (tmp_path / "lvis_instances_results.json").write_text(json.dumps(results))
    report = read_detections(name, tmp_path, ["bbox"])
    assert report.confusions[-1].sum() == exhaustive
    assert report.metrics["bbox/APf"] == pytest.approx(25.25 if exhaustive else 50.5, abs=0.1)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def found(record: dict) -> Instances:
    """Return perfect detections and one more object of a class that was not annotated exhaustively."""
    size = (record["height"], record["width"])
    objects, instances = record["annotations"], Instances(size)
    objects = [*objects, {**objects[0], "category_id": 99}]
    boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    masks = [polygons_to_bitmask(o["segmentation"], *size) for o in objects]
    instances.pred_boxes = Boxes(boxes)
    instances.pred_masks = torch.stack([torch.from_numpy(mask) for mask in masks])
    instances.pred_classes = torch.tensor([o["category_id"] for o in objects])
    instances.scores = torch.ones(len(objects))
    return instances


@needs_lvis
def test_images_of_rare_classes_come_more_often_and_a_loader_goes_on_where_it_was(config):
    config.DATALOADER.REPEAT_THRESHOLD = 1.0  # sqrt(8): one of eight images has the rare class

    def ids(loader, count: int) -> list[int]:
        return [x["image_id"] for x in chain.from_iterable(islice(loader, count))]

    loader = Trainer.build_train_loader(config)
    first, state = ids(loader, 100), loader.state_dict()
    counts = Counter(first)
    assert counts[1] / (len(first) - counts[1]) == pytest.approx(8**0.5 / 7, rel=0.15)
    resumed = Trainer.build_train_loader(config)
    resumed.load_state_dict(state)
    whole = Trainer.build_train_loader(config)
    whole.load_state_dict({**state, "images": 0})
    assert ids(resumed, 5) == ids(whole, 105)[-10:]


def test_without_the_package_the_error_comes_first_and_says_how_to_get_it(config, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    match = r"'.*_lvis_v1_val' needs the package lvis.*pip install --no-deps lvis"
    with pytest.raises(ImportError, match=match):
        Trainer(config)
    config.DATASETS.TEST, config.SOLVER.BEST_METRIC = (), ""
    with pytest.raises(ImportError, match="_lvis_v1_train' needs the package lvis"):
        Trainer(config)


@needs_lvis
def test_annotations_that_are_not_lviss_are_named(config):
    (name,) = config.DATASETS.TRAIN
    path = Path(MetadataCatalog.get(name).json_file)
    content = json.loads(path.read_text())
    del content["images"][0]["coco_url"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train2017.json: KeyError: 'coco_url'.*in LVIS's format"):
        load_datasets([name], filter_empty=False, check_images=False)

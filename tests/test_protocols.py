"""OV-COCO and OV-LVIS: labels of base classes, and metrics of base and of novel classes."""

import json
import math
from pathlib import Path

import architectures  # noqa: F401  (registers small CLIPs)
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin import register_all_coco, register_all_lvis
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.structures import Boxes, Instances
from PIL import Image, ImageDraw
from test_engine import final_metrics
from test_lvis import FREQUENT, needs_lvis, write_lvis

from denseclip_d2.config import prepare_run
from denseclip_d2.data import get_class_names, register_open_vocabulary
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.data.open_vocabulary import COCO_BASE, COCO_NOVEL, LVIS_BASE
from denseclip_d2.engine import Trainer
from denseclip_d2.evaluation.build import check_test_sets
from denseclip_d2.evaluation.seen import base_and_novel

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(ROOT.glob("configs/OV-[CL]*/denseclip_*.yaml"))  # COCO and LVIS
THINGS = {c["name"]: c["id"] for c in COCO_CATEGORIES if c["isthing"]}
TRAIN, VAL = "ov_coco_2017_train", "ov_coco_2017_val"
# The names of each image's objects: base (car, person), novel (dog), and neither (parking meter).
OBJECTS = [["car", "dog"], ["dog"], ["parking meter"], ["person", "parking meter"], []]
BOXES = [[8, 8, 24, 24], [50, 20, 30, 32]]

SMALL = {"RN50": "RN-shapes-quickgelu", "ViT-B-16": "ViT-tiny-quickgelu", "ConvNeXt-B": "tiny-ConvNeXt"}
TINY = """
_BASE_: {base}
MODEL:
  WEIGHTS: ""
  DENSECLIP: {{CLIP_MODEL: {clip}, CONTEXT_DECODER: {{WIDTH: 64}}, PROMPT: {{N_CTX: 1}}}}
  FPN: {{OUT_CHANNELS: 16}}
  RPN: {{POST_NMS_TOPK_TRAIN: 20, POST_NMS_TOPK_TEST: 3}}
  ROI_HEADS: {{BATCH_SIZE_PER_IMAGE: 16, SCORE_THRESH_TEST: 0.0}}
  ROI_BOX_HEAD: {{FC_DIM: 16, NUM_FC: 1}}
  ROI_MASK_HEAD: {{CONV_DIM: 8, NUM_CONV: 1, POOLER_RESOLUTION: 4}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, MAX_SIZE_TRAIN: 96, MAX_SIZE_TEST: 96}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 2, STEPS: [], WARMUP_ITERS: 0}}
DATALOADER: {{NUM_WORKERS: 0}}
TEST: {{DETECTIONS_PER_IMAGE: 5}}
SEED: 1
"""


def write_coco(root: Path, split: str) -> None:
    """Write images with annotations like COCO 2017."""
    content: dict[str, list] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": id_, "name": name} for name, id_ in THINGS.items()]
    (root / f"{split}2017").mkdir(parents=True)
    for i, names in enumerate(OBJECTS, 1):
        image, file_name = Image.new("RGB", (96, 64), "gray"), f"{i:012}.jpg"
        for name, (x, y, w, h) in zip(names, BOXES, strict=False):
            ImageDraw.Draw(image).rectangle((x, y, x + w, y + h), fill="red" if name == "dog" else "blue")
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1, "image_id": i, "category_id": THINGS[name],
                    "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )  # fmt: skip
        image.save(root / f"{split}2017" / file_name)
        content["images"].append({"id": i, "file_name": file_name, "width": 96, "height": 64})
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


def register(root: Path) -> None:
    """Register the folder as Detectron2 and this package register the one of DETECTRON2_DATASETS."""
    register_all_coco(str(root))
    register_all_lvis(str(root))
    register_open_vocabulary()


@pytest.fixture
def coco(tmp_path, catalogs):
    """Write a few images in the layout of COCO 2017, and register them."""
    for split in ("train", "val"):
        write_coco(tmp_path / "coco", split)
    register(tmp_path)
    return tmp_path


@pytest.fixture
def lvis(tmp_path, catalogs):
    """Write a few images in the layout of LVIS v1, and register them."""
    (tmp_path / "lvis").mkdir()
    for split, count in (("train", 8), ("val", 4)):
        write_lvis(tmp_path / "coco", f"{split}2017", count).rename(tmp_path / f"lvis/lvis_v1_{split}.json")
    register(tmp_path)
    return tmp_path


def tiny_run(config: Path, folder: Path, *opts):
    """Return a protocol's config with a small CLIP of the same kind, small heads, and two iterations."""
    clip = next(small for name, small in SMALL.items() if name in config.stem)
    file = folder / "config.yaml"
    file.write_text(TINY.format(base=config, clip=clip))
    return prepare_run(str(file), ["OUTPUT_DIR", str(folder / "output"), *opts]).cfg


def records(name: str) -> list[dict]:
    return load_datasets([name], filter_empty=False, check_images=True)


def objects(name: str) -> list[list[str]]:
    """Return the class names of each image's objects."""
    names = MetadataCatalog.get(name).thing_classes
    return [[names[a["category_id"]] for a in record["annotations"]] for record in records(name)]


# The classes


def test_classes_are_the_published_numbers_of_coco_and_lvis():
    assert (len(COCO_BASE), len(COCO_NOVEL), len({*COCO_BASE, *COCO_NOVEL} & {*THINGS})) == (48, 17, 65)
    assert (len({*LVIS_BASE}), len(MetadataCatalog.get("lvis_v1_val").thing_classes)) == (866, 1203)
    counts = MetadataCatalog.get("ov_lvis_v1_train").class_image_count
    # Rare are classes in 1 to 10 images (LVIS, Gupta et al., CVPR 2019).
    assert [c["id"] for c in counts] == [*range(866)] and min(c["image_count"] for c in counts) > 10


# The datasets


def test_training_has_the_objects_of_base_classes_and_the_images_with_them(coco):
    assert objects(TRAIN) == [["car"], ["person"]]
    assert [record["image_id"] for record in records(TRAIN)] == [1, 4]
    assert records(TRAIN)[0]["annotations"][0]["bbox"] == BOXES[0]


def test_the_test_has_base_and_novel_classes_and_the_images_with_them(coco):
    assert objects(VAL) == [["car", "dog"], ["dog"], ["person"]]


@needs_lvis
def test_rare_classes_of_lvis_have_no_labels_in_training(lvis):
    name = MetadataCatalog.get("lvis_v1_train").thing_classes[FREQUENT - 1]
    assert objects("ov_lvis_v1_train") == [[name]] * 8
    assert len(objects("lvis_v1_train")[0]) == 2


def test_a_file_of_other_categories_is_refused(coco):
    file = coco / "coco/annotations/instances_train2017.json"
    file.write_text(file.read_text().replace('"parking meter"', '"parking spot"'))
    with pytest.raises(
        ValueError, match=r"categories than coco_2017_train: no 'parking meter', 'parking spot'"
    ):
        records(TRAIN)


def test_a_missing_file_is_named(coco):
    (coco / "coco/annotations/instances_train2017.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*instances_train2017.json"):
        records(TRAIN)


# Metrics


def test_perfect_boxes_of_base_classes_alone_have_ap50_for_base_and_none_for_novel(coco, tmp_path):
    cfg = tiny_run(CONFIGS[0], tmp_path)
    evaluator = Trainer.build_evaluator(cfg, VAL)
    evaluator.reset()
    for record in records(VAL):
        base = [a for a in record["annotations"] if a["category_id"] != names_of(VAL).index("dog")]
        evaluator.process([record], [{"instances": detections(record, base)}])
    for task in ("bbox", "segm"):
        metrics = evaluator.evaluate()[task]
        assert metrics["AP50_base"] == pytest.approx(100) and metrics["AP50_novel"] == 0
        assert metrics["AP50"] == pytest.approx(200 / 3)  # car, person, dog


def names_of(name: str) -> list[str]:
    return MetadataCatalog.get(name).thing_classes


def detections(record: dict, annotations: list[dict]) -> Instances:
    height, width = record["height"], record["width"]
    boxes = torch.tensor([a["bbox"] for a in annotations]).reshape(-1, 4).float()
    boxes[:, 2:] += boxes[:, :2]
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.long)
    return Instances(
        (height, width), pred_boxes=Boxes(boxes), pred_classes=classes, scores=torch.ones(len(boxes)),
        pred_masks=masks,
    )  # fmt: skip


def test_a_kind_without_objects_has_no_mean():
    found = base_and_novel("IoU", np.array([50.0, math.nan, math.nan]), ["a", "b", "c"], ["b", "c"])
    assert found["IoU_base"] == 50 and math.isnan(found["IoU_novel"])


def test_without_detections_there_is_no_ap50(coco, tmp_path):
    evaluator = Trainer.build_evaluator(tiny_run(CONFIGS[0], tmp_path), VAL)
    evaluator.reset()
    evaluator.process(records(VAL), [{"instances": detections(record, [])} for record in records(VAL)])
    metrics = evaluator.evaluate()["bbox"]
    assert math.isnan(metrics["AP50_base"]) and math.isnan(metrics["AP50_novel"])


def test_a_key_names_the_novel_classes_of_any_dataset(coco, tmp_path):
    cfg = tiny_run(CONFIGS[0], tmp_path)
    cfg.DATASETS.NOVEL_CLASSES = ("car", "person")
    evaluator = Trainer.build_evaluator(cfg, VAL)
    evaluator.reset()
    for record in records(VAL):
        dogs = [a for a in record["annotations"] if a["category_id"] == names_of(VAL).index("dog")]
        evaluator.process([record], [{"instances": detections(record, dogs)}])
    metrics = evaluator.evaluate()["bbox"]
    assert metrics["AP50_base"] == pytest.approx(100) and metrics["AP50_novel"] == 0
    cfg.DATASETS.NOVEL_CLASSES = ("car", "wolf")
    with pytest.raises(ValueError, match="NOVEL_CLASSES has 'wolf', which is no class of ov_coco_2017_val"):
        check_test_sets(cfg)


# Training and evaluation


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_configs_train_on_base_names_and_take_any_names(path):
    cfg = prepare_run(str(path), []).cfg
    base, denseclip, head = len(get_class_names(cfg)), cfg.MODEL.DENSECLIP, cfg.MODEL.ROI_BOX_HEAD
    assert base == cfg.MODEL.ROI_HEADS.NUM_CLASSES == (48 if "COCO" in path.parent.name else 866)
    assert (denseclip.CLASSIFIER, denseclip.SCORE_MAP.CONCAT) == ("text", "text")
    assert denseclip.PROMPT.MAX_NAME_TOKENS == 0
    assert cfg.MODEL.WEIGHTS.startswith(f"openclip://{denseclip.CLIP_MODEL}/")
    assert head.USE_FED_LOSS == head.USE_SIGMOID_CE == ("LVIS" in path.parent.name)
    assert ("RepeatFactor" in cfg.DATALOADER.SAMPLER_TRAIN) == head.USE_FED_LOSS


def trained_and_evaluated(path: Path, folder: Path, *opts) -> dict:
    trainer = Trainer(tiny_run(path, folder, *opts))
    trainer.train()
    assert trainer.model.roi_heads.num_classes == trainer.cfg.MODEL.ROI_HEADS.NUM_CLASSES
    return final_metrics(folder / "output")


@pytest.mark.parametrize("path", [p for p in CONFIGS if "COCO" in p.parent.name], ids=lambda path: path.stem)
def test_ov_coco_trains_and_reports_base_novel_and_all(path, coco, tmp_path):
    metrics = trained_and_evaluated(path, tmp_path)
    for key in ("AP50", "AP50_base", "AP50_novel", "AP_seen", "AP_unseen", "AP-dog", "AP-car"):
        assert math.isfinite(metrics[f"bbox/{key}"]) and math.isfinite(metrics[f"segm/{key}"])
    assert "bbox/AP-parking meter" not in metrics


@needs_lvis
@pytest.mark.parametrize("path", [p for p in CONFIGS if "LVIS" in p.parent.name], ids=lambda path: path.stem)
def test_ov_lvis_trains_and_reports_rare_common_frequent_and_all(path, lvis, tmp_path):
    metrics = trained_and_evaluated(path, tmp_path)
    for key in ("AP", "APr", "APc", "APf"):
        assert math.isfinite(metrics[f"bbox/{key}"]) and math.isfinite(metrics[f"segm/{key}"])


def test_ov_coco_trains_on_photographs(coco_root, catalogs, tmp_path):
    register(coco_root)
    labels = {name for names in objects(TRAIN) for name in names}
    assert labels <= {*COCO_BASE}
    metrics = trained_and_evaluated(CONFIGS[0], tmp_path)
    assert all(math.isfinite(metrics[f"bbox/AP50{kind}"]) for kind in ("", "_base", "_novel"))

"""Files of label tools keep their meaning. tests/label_tools/ has files of one scene."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from label_tools.scene import CLASSES, HEIGHT, IMAGES, OBJECTS, WIDTH
from pycocotools import mask as mask_util
from test_engine import final_metrics, run_tool

from configs import prepared_cfg
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.engine import Trainer

CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"
MASKS = "configs/Shapes/denseclip_mask_rcnn_tiny.yaml"
FOLDER = Path(__file__).parent / "label_tools"
USED = ("wheelbarrow", "garden gnome", "cat")  # the classes with objects
WHOLE = {"barrow": [(4, 6, 20, 16)], "gnome": [(34, 10, 12, 24)], "cat": [(10, 8, 30, 30)]}
PARTS = {"barrows": [(44, 4, 16, 16), (44, 28, 16, 16)]}
HOLE_KEPT, HOLE_FILLED, FILLED_BY_CONTOUR = 880, 1024, 961  # a contour runs through the centers of pixels


@dataclass(frozen=True)
class File:
    """The expected content of a tool's file. Differences to the scene are the tool's losses.

    Attributes:
        path: path of the file.
        classes: names in the order of the category ids.
        boxes: boxes by object, if they differ from the scene.
        crowds: objects with the crowd flag; in the scene only "barrows".
        ring: pixels of the mask that has a hole in the scene; None if the tool writes no mask.
        images: the images that the tool keeps.
    """

    path: str
    classes: tuple[str, ...] = CLASSES
    boxes: dict[str, list] = field(default_factory=dict)
    crowds: tuple[str, ...] = ("barrows",)
    ring: int | None = None
    images: tuple[str, ...] = IMAGES

    @property
    def source(self) -> tuple[str, ...]:
        """Return the values of --train: a COCO file and the folder of the images, or one path."""
        images = [str(FOLDER / "images")] if self.path.endswith(".json") else []
        return str(FOLDER / self.path), *images


FILES = (
    # A mask becomes a crowd, as in CVAT's exports,
    File("datumaro/coco/annotations/instances_train.json", crowds=("ring", "barrows"), ring=HOLE_KEPT),
    # unless iscrowd is 0. Then its hole is filled.
    File("datumaro/coco_flagged/annotations/instances_train.json", ring=FILLED_BY_CONTOUR),
    File("globox/boxes.json", classes=tuple(sorted(USED)), crowds=()),
    File(
        "imantics/coco.json",
        classes=USED,
        boxes={**WHOLE, "ring": [(8, 6, 31, 31)], "barrows": [(44, 4, 15, 39)]},
        crowds=(),
        ring=FILLED_BY_CONTOUR,
    ),
    File("kwcoco/data.kwcoco.json", ring=HOLE_KEPT),
    File("label_studio/result.json", classes=tuple(sorted(CLASSES)), crowds=()),
    File(
        "label_studio/result_coco.json",  # brush strokes
        classes=USED,
        boxes={"cat": [(10, 8, 31, 32)], **PARTS},
        crowds=(),
        ring=FILLED_BY_CONTOUR,
        images=IMAGES[:3],
    ),
    File("labelme2coco/dataset.json", classes=USED, boxes=PARTS, crowds=(), ring=HOLE_FILLED),
    File("pycocowriter/built.json", ring=HOLE_KEPT),
    File("pycocowriter/from_table.json", classes=USED, boxes=WHOLE, crowds=(), images=IMAGES[:3]),
    File("pylabel/garden.json", classes=USED),
    File("sahi/coco.json", crowds=(), ring=HOLE_FILLED),
    File("supervision/coco.json", crowds=("ring", "barrows"), ring=HOLE_KEPT),
)
ROUNDED = {"barrow": [(4, 7, 21, 15)], "gnome": [(35, 10, 12, 25)]}
FOLDERS = (
    File("datumaro/yolo/data.yaml", boxes={"barrows": []}),  # crowds are left out
    File("datumaro/voc", crowds=()),
    File(
        "supervision/yolo/data.yaml",  # names no image folder
        boxes={
            "cat": [(10, 8, 30, 30)],
            "ring": [(8, 6, 31, 31)],
            "barrows": [(44, 4, 15, 15), (44, 28, 15, 15)],
        },
        crowds=(),
    ),
    File(
        "supervision/voc",
        classes=tuple(sorted(USED)),
        boxes={**ROUNDED, "cat": [(10, 8, 31, 31)], **PARTS},
        crowds=(),
    ),
)
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.path)


def read(source: tuple[str, ...], tmp_path: Path) -> tuple[tuple[str, ...], list[dict]]:
    """Return class names and records, as training and evaluation load them."""
    keys = ["DATASETS.CUSTOM.TRAIN", source, "DATASETS.CUSTOM.VAL_FRACTION", 0.0]
    cfg = prepared_cfg(CONFIG, [*keys, "OUTPUT_DIR", str(tmp_path / "output")])
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    records = load_datasets(names, filter_empty=False, check_images=True)
    return tuple(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes), records


def found_in(records: list[dict], classes: tuple[str, ...]) -> list[tuple]:
    """Return image, class, crowd and box of every annotation, sorted."""
    return sorted(
        (
            Path(record["file_name"]).name,
            classes[each["category_id"]],
            each.get("iscrowd", 0),
            *(round(float(x), 2) for x in each["bbox"]),
        )
        for record in records
        for each in record["annotations"]
    )


def pixels(annotation: dict) -> int:
    """Return how many pixels the mask of an annotation covers."""
    mask = annotation["segmentation"]
    if isinstance(mask, list):
        mask = mask_util.merge(mask_util.frPyObjects(mask, HEIGHT, WIDTH))
    elif isinstance(mask["counts"], list):
        mask = mask_util.frPyObjects(mask, HEIGHT, WIDTH)
    return int(mask_util.area(mask))


@pytest.mark.parametrize("file", [*FILES, *FOLDERS], ids=lambda file: file.path)
def test_classes_images_boxes_and_crowds_are_those_of_the_tool(file, tmp_path, catalogs):
    classes, records = read(file.source, tmp_path)
    assert classes == file.classes
    assert sorted(Path(record["file_name"]).name for record in records) == list(file.images)
    expected = sorted(
        (each.image, each.label, int(each.key in file.crowds), *box)
        for each in OBJECTS
        for box in file.boxes.get(each.key, [each.box])
    )
    found = found_in(records, classes)
    assert [x[:3] for x in found] == [x[:3] for x in expected]
    np.testing.assert_allclose([x[3:] for x in found], [x[3:] for x in expected], atol=0.01)


@pytest.mark.parametrize("file", [file for file in FILES if file.ring], ids=lambda file: file.path)
def test_a_hole_is_there_where_the_tool_wrote_it(file, tmp_path, catalogs):
    _, records = read(file.source, tmp_path)
    record = next(r for r in records if r["file_name"].endswith("garden_3.png"))
    ring = next(a for a in record["annotations"] if a["bbox"][0] == 8)
    assert pixels(ring) == file.ring


@each_file
def test_perfect_detections_have_an_ap_of_100(file, tmp_path, catalogs):
    """Independent of ids, areas and flags in the file, the evaluator matches each object."""
    keys = ["DATASETS.CUSTOM.TRAIN", file.source, "DATASETS.CUSTOM.VAL", file.source]
    cfg = prepared_cfg(CONFIG, [*keys, "OUTPUT_DIR", str(tmp_path / "output")])
    name = cfg.DATASETS.TEST[0]
    evaluator = Trainer.build_evaluator(cfg, name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        objects = [a for a in record["annotations"] if not a.get("iscrowd")]
        instances = Instances((HEIGHT, WIDTH))
        x, y, width, height = torch.tensor([a["bbox"] for a in objects]).reshape(-1, 4).T
        instances.pred_boxes = Boxes(torch.stack([x, y, x + width, y + height], 1))
        instances.scores = torch.ones(len(objects))
        instances.pred_classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
        evaluator.process([record], [{"instances": instances}])
    figures = evaluator.evaluate()["bbox"]
    learned = {each.label for each in OBJECTS if each.key not in file.crowds}
    for label in file.classes:
        expected = 100 if label in learned else math.nan
        np.testing.assert_allclose(figures[f"AP-{label}"], expected, err_msg=label)


# Training and evaluation with one file of each kind


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "config"),
    [
        ("datumaro/coco_flagged/annotations/instances_train.json", MASKS),  # polygons; crowds are RLE
        ("label_studio/result.json", CONFIG),  # boxes and a polygon, all ids from 0, names with ../
        ("kwcoco/data.kwcoco.json", CONFIG),  # polygons with interiors, no area, few iscrowd
    ],
)
def test_a_file_trains_and_evaluates(path, config, tmp_path):
    file = next(file for file in FILES if file.path == path)
    few = {
        "SOLVER.MAX_ITER": 2, "SOLVER.IMS_PER_BATCH": 2, "DATALOADER.NUM_WORKERS": 0, "OUTPUT_DIR": tmp_path,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    }  # fmt: skip
    options = ["--train", *file.source, "--val", *file.source, *(x for pair in few.items() for x in pair)]
    done = run_tool("train_net.py", *options, datasets=tmp_path, config=config)
    assert done.returncode == 0, done.stderr
    metrics = final_metrics(tmp_path)
    assert math.isfinite(metrics["bbox/AP"]) and metrics["total_loss"] > 0
    assert ("segm/AP" in metrics) == (config == MASKS)
    assert all(f"bbox/AP-{label}" in metrics for label in CLASSES)
    assert (tmp_path / "report.html").is_file()

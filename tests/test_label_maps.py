"""Public datasets of label maps: their conversion, and segmentation across them by names."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, load_script
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin import register_all_ade20k, register_all_cityscapes
from PIL import Image
from semantic import load

from configs import prepared_cfg
from denseclip_d2.data import get_class_names
from denseclip_d2.data.label_maps import COCO_STUFF_CLASSES, PASCAL_CONTEXT_CLASSES, register_label_maps
from denseclip_d2.data.label_maps import DATASETS as MAPS
from denseclip_d2.engine import Trainer
from denseclip_d2.language.prompts import check_class_names

RN50 = "configs/OV-Segmentation/denseclip_semantic_fpn_RN50_80k.yaml"
# The configs' CLIPs are large and not here. Its layers are those of RN50, narrower.
SMALL = (
    "MODEL.WEIGHTS", "", "MODEL.DENSECLIP.CLIP_MODEL", "RN-shapes-quickgelu", "MODEL.DEVICE", "cpu",
    "MODEL.DENSECLIP.VISUAL.NORM", "BN", "MODEL.SEM_SEG_HEAD.NORM", "BN",
    "MODEL.DENSECLIP.VISUAL.RESOLUTION", 64, "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.CROP.SIZE", [64, 64],
    "INPUT.MIN_SIZE_TEST", 64,
    "TEST.SLIDING_WINDOW.SIZE", (64, 64), "TEST.SLIDING_WINDOW.STRIDE", (42, 42), "TEST.EVAL_PERIOD", 0,
    "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0, "TEST.REPORT", False,
)  # fmt: skip
# The values of a label image, and the classes that they stand for.
COCO_STUFF = {0: 0, 12: 11, 89: 79, 91: 80, 111: 100, 181: 170, 255: 255}
PASCAL_CONTEXT = {0: 255} | {value: value - 1 for value in range(1, 60)}
CITYSCAPES = {0: 255, 6: 255, 7: 0, 8: 1, 11: 2, 12: 3, 17: 5, 18: 255, 19: 6, 26: 13, 28: 15, 33: 18}
ADE20K = {0: 255} | {value: value - 1 for value in range(1, 151)}


def write_pair(image: Path, label: Path, values: list[int], size: tuple[int, int] = (60, 40)) -> None:
    """Write an image and a label image that has all values, in blocks."""
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.sort(np.resize(np.array(values, np.uint8), size[0] * size[1])).reshape(size[::-1])
    Image.fromarray(np.stack([labels, labels[::-1], 255 - labels], axis=2)).save(image)
    Image.fromarray(labels).save(label)


@pytest.fixture
def coco_stuff(tmp_path) -> Path:
    root = tmp_path / "coco"
    for split, count in (("train2017", 3), ("val2017", 1)):
        for i in range(count):
            name = f"{split}/{i:012d}"
            write_pair(root / f"{name}.jpg", root / f"stuffthingmaps/{name}.png", [*COCO_STUFF], (60 + i, 50))
    return root


@pytest.fixture
def pascal_context(tmp_path) -> Path:
    root = tmp_path / "VOCdevkit/VOC2010"
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, name in (("train", "2008_000001"), ("val", "2008_000002")):
        (root / f"ImageSets/Main/{split}.txt").write_text(f"{name}\n2009_999999\n")
        label = root / f"59_context_labels/{name}.png"
        write_pair(root / f"JPEGImages/{name}.jpg", label, [*PASCAL_CONTEXT], (40, 60))
    Image.new("RGB", (8, 8)).save(root / "JPEGImages/2010_000001.jpg")  # of another task of VOC
    return root


@pytest.fixture
def cityscapes(tmp_path) -> Path:
    root = tmp_path / "cityscapes"
    for split, city in (("train", "ulm"), ("val", "munster")):
        start = root / f"gtFine/{split}/{city}/{city}_000000_000019_gtFine"
        image = root / f"leftImg8bit/{split}/{city}/{city}_000000_000019_leftImg8bit.png"
        write_pair(image, Path(f"{start}_labelIds.png"), [*CITYSCAPES], (128, 64))
        Image.new("L", (128, 64)).save(f"{start}_instanceIds.png")
        Path(f"{start}_polygons.json").write_text(json.dumps({"imgHeight": 64, "imgWidth": 128}))
    return root


@pytest.fixture
def ade20k(tmp_path) -> Path:
    root = tmp_path / "ADEChallengeData2016"
    for split, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        label = root / f"annotations/{split}/{name}.png"
        write_pair(root / f"images/{split}/{name}.jpg", label, [*ADE20K], (80, 60))
    return root


def prepare(root: Path, dataset: str, *options: str) -> None:
    script, names = ("prepare_ade20k", []) if dataset == "ade20k" else ("prepare_label_maps", [dataset])
    load_script(f"datasets/{script}.py").main([*names, "--root", str(root), *options])


def trained_and_tested(output: Path, *opts) -> dict[str, dict[str, float]]:
    """Train a small model for two iterations. Return the metrics in metrics.json by test set."""
    trainer = Trainer(prepared_cfg(RN50, [*SMALL, *opts, "OUTPUT_DIR", str(output)]))
    trainer.resume_or_load()
    trainer.train()
    results: dict[str, dict[str, float]] = {}
    for key, value in json.loads((output / "metrics.json").read_text().splitlines()[-1]).items():
        if "/sem_seg/" in key:
            name, metric = key.split("/sem_seg/")
            results.setdefault(name, {})[metric] = value
    return results


LABELS = {
    "coco_stuff": (
        COCO_STUFF,
        "stuffthingmaps/{}.png",
        "stuffthingmaps_detectron2/{}.png",
        "val2017/000000000000",
    ),
    "pascal_context": (
        PASCAL_CONTEXT,
        "59_context_labels/{}.png",
        "annotations_detectron2/val/{}.png",
        "2008_000002",
    ),
    "cityscapes": (
        CITYSCAPES,
        "gtFine/{}_labelIds.png",
        "gtFine/{}_labelTrainIds.png",
        "val/munster/munster_000000_000019_gtFine",
    ),
    "ade20k": (ADE20K, "annotations/{}.png", "annotations_detectron2/{}.png", "validation/ADE_val_00000001"),
}


@pytest.mark.parametrize("dataset", LABELS)
def test_each_value_becomes_its_class(request, dataset):
    root = request.getfixturevalue(dataset)
    classes, source, target, name = LABELS[dataset]
    prepare(root, dataset, "--allow-partial")
    found, values = (np.asarray(Image.open(root / path.format(name))) for path in (target, source))
    assert {*np.unique(values).tolist()} == {*classes}
    for value, class_ in classes.items():
        assert (found[values == value] == class_).all(), value


@pytest.mark.parametrize(
    ("dataset", "value"),
    [("coco_stuff", 11), ("coco_stuff", 200), ("pascal_context", 60), ("cityscapes", 255)],
)
def test_values_without_a_class_are_refused(request, dataset, value):
    """Of COCO-Stuff, 11 is an id without masks, so that maps that were converted before are noticed."""
    root = request.getfixturevalue(dataset)
    _, source, _, name = LABELS[dataset]
    Image.new("L", (60, 40), value).save(root / source.format(name))
    with pytest.raises(SystemExit, match=rf"error: .*{name}.* has other labels than .*: {value}\. It is of"):
        prepare(root, dataset, "--allow-partial")


def test_a_palette_changes_no_value(coco_stuff):
    path = coco_stuff / "stuffthingmaps/val2017/000000000000.png"
    with Image.open(path) as image:
        colored = Image.fromarray(np.asarray(image))
    colored.putpalette(np.random.default_rng(0).integers(256, size=768).tolist())
    colored.save(path)
    prepare(coco_stuff, "coco_stuff", "--allow-partial")
    found = Image.open(coco_stuff / "stuffthingmaps_detectron2/val2017/000000000000.png")
    assert {*np.unique(np.asarray(found)).tolist()} == {*COCO_STUFF.values()}


def test_an_incomplete_dataset_is_refused_with_what_is_missing(coco_stuff, pascal_context, tmp_path):
    with pytest.raises(
        SystemExit, match="error: .*/coco has 3 of COCO-Stuff's 118287 images train2017/.*--allow"
    ):
        prepare(coco_stuff, "coco_stuff")
    (coco_stuff / "val2017/000000000000.jpg").unlink()
    with pytest.raises(SystemExit, match="1 of the 0 images and 1 label images .*such as 000000000000"):
        prepare(coco_stuff, "coco_stuff", "--allow-partial")
    (pascal_context / "ImageSets/Main/val.txt").unlink()
    with pytest.raises(SystemExit, match="VOC2010 has no ImageSets/Main/val.txt. Unpack the whole dataset"):
        prepare(pascal_context, "pascal_context", "--allow-partial")
    with pytest.raises(SystemExit, match="elsewhere does not exist. datasets/README.md"):
        prepare(tmp_path / "elsewhere", "cityscapes")


def test_names_are_the_datasets_own_in_words():
    assert len(COCO_STUFF_CLASSES) == 171 and len(PASCAL_CONTEXT_CLASSES) == 59
    check_class_names(COCO_STUFF_CLASSES)
    check_class_names(PASCAL_CONTEXT_CLASSES)
    named = {0: "person", 11: "stop sign", 79: "toothbrush", 80: "banner", 100: "door", 170: "wood"}
    assert {i: COCO_STUFF_CLASSES[i] for i in named} == named
    assert PASCAL_CONTEXT_CLASSES[10] == "dining table|table" and PASCAL_CONTEXT_CLASSES[-1] == "wood"
    for model in ("RN50", "ViT-B-16", "ConvNeXt-B"):
        cfg = prepared_cfg(RN50.replace("RN50", model))
        assert get_class_names(cfg) == COCO_STUFF_CLASSES
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 171
        assert len(cfg.DATASETS.TEST) == 3


@pytest.mark.slow
def test_a_model_of_one_dataset_is_tested_on_others_by_their_names(
    coco_stuff, pascal_context, cityscapes, ade20k, tmp_path, catalogs, caplog
):
    for dataset in LABELS:
        prepare(tmp_path / MAPS[dataset].folder, dataset, "--allow-partial")
    register_label_maps(tmp_path)
    register_all_ade20k(str(tmp_path))
    register_all_cityscapes(str(tmp_path))
    assert len(load("pascal_context_59_sem_seg_val")) == 1
    assert "no counterpart" not in caplog.text
    with caplog.at_level(logging.INFO):
        results = trained_and_tested(tmp_path / "output")
    for name, count in (("ade20k", 150), ("pascal_context_59", 59), ("cityscapes_fine", 9)):
        found = results[f"{name}_sem_seg_val"]
        classes = MetadataCatalog.get(f"{name}_sem_seg_val").stuff_classes
        assert {f"IoU-{class_}" for class_ in classes} <= {*found}
        assert sum(np.isfinite(found[f"IoU-{class_}"]) for class_ in classes) >= count
        assert np.isfinite([found["mIoU"], found["IoU_seen"], found["IoU_unseen"]]).all()
    told = [r.getMessage() for r in caplog.records if "IoU_seen,IoU_unseen" in r.getMessage()]
    assert len(told) == 3


def take_some(folder: Path, to: Path) -> Path:
    """Make a folder of the first two images of each split, and their labels."""
    for labels in folder.glob("labels/*"):
        names = {path.stem for path in sorted(labels.iterdir())[:2]}
        for kind in ("images", "labels"):
            (to / kind / labels.name).mkdir(parents=True)
            for path in (folder / kind / labels.name).iterdir():
                if path.stem in names:
                    (to / kind / labels.name / path.name).symlink_to(path)
    (to / "classes.txt").symlink_to(folder / "classes.txt")
    return to


@pytest.mark.slow
def test_photographs_and_video_frames_are_segmented_by_names(tmp_path, catalogs):
    folders = (SHARED / "datasets/photographs/labels_of_pixels", SHARED / "datasets/camvid")
    if not all(folder.exists() for folder in folders):
        pytest.skip("no photographs with labels of pixels here (../shared/datasets)")
    few = [take_some(folder, tmp_path / folder.name) for folder in folders]
    opts = [
        "DATASETS.SEMANTIC_FOLDERS", tuple(map(str, few)), "DATASETS.TRAIN", ("labels_of_pixels_train",),
        "DATASETS.TEST", ("labels_of_pixels_val", "camvid_val"), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 129,
    ]  # fmt: skip
    results = trained_and_tested(tmp_path / "output", *opts)
    assert "IoU_unseen" not in results["labels_of_pixels_val"]
    camvid = results["camvid_val"]
    seen = [camvid[f"IoU-{name}"] for name in ("sky", "building", "road", "tree", "fence", "car")]
    assert camvid["IoU_seen"] == pytest.approx(np.mean(seen))
    assert np.isfinite(camvid["IoU_unseen"])

"""Data of semantic segmentation: names, registration, labels, checks."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin import register_all_cityscapes
from detectron2.evaluation import SemSegEvaluator
from PIL import Image
from semantic import RECIPE, load, semantic_config

from configs import prepared_cfg
from denseclip_d2.config import load_config
from denseclip_d2.data import get_class_names, register_semantic_folder
from denseclip_d2.data.checks import check_classes
from denseclip_d2.data.mapper import build_mapper
from denseclip_d2.data.semantic import read_labels
from denseclip_d2.language.prompts import check_class_names, tokenize_names


@pytest.fixture
def folder(tmp_path, catalogs):
    """Write a dataset folder of one photograph and its labels."""
    root = tmp_path / "rooms"
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    (root / "classes.txt").write_text("wall\nfloor, flooring\n")
    Image.new("RGB", (40, 30)).save(root / "images/train/a.JPG", format="jpeg")
    Image.new("L", (40, 30), 1).save(root / "labels/train/a.png")
    return root


# Class names


def test_ade20k_names_are_the_first_synonyms():
    cfg = semantic_config("DATASETS.TRAIN", ("ade20k_sem_seg_train",))
    names = get_class_names(cfg)
    assert len(names) == 150
    assert names[6] == "road"
    assert names[8] == "window"
    assert names[65] == "toilet"
    check_class_names(names)
    assert tokenize_names(names, length=5).shape == (150, 5)  # as in the release


def test_a_model_of_any_names_reads_the_synonyms_that_tell_classes_apart():
    names = MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes
    opts = ["DATASETS.TRAIN", ("ade20k_sem_seg_train",), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 150]
    read = get_class_names(prepared_cfg("configs/OV-Segmentation/Base-SemanticFPN-OV.yaml", opts))
    assert read[6] == "road|route"
    assert read[names.index("earth, ground")] == "earth"  # "land, ground, soil" is another class
    assert read[names.index("land, ground, soil")] == "land|soil"
    assert read[names.index("screen")] == "screen"
    check_class_names(read)


def test_a_synonym_that_two_classes_share_names_neither(catalogs):
    register_semantic_folder("kitchens", "", "", ["counter, bar", "counter, worktop", "sink, basin"])
    names = get_class_names(semantic_config("DATASETS.TRAIN", ("kitchens",)))
    assert names == ("counter, bar", "counter, worktop", "sink")


def test_semantic_models_speak_of_all_classes_of_cityscapes_and_detectors_of_objects():
    opts = ("DATASETS.TRAIN", ("cityscapes_fine_sem_seg_train",))
    assert get_class_names(semantic_config(*opts))[:3] == ("road", "sidewalk", "building")
    assert len(get_class_names(semantic_config(*opts))) == 19
    assert len(get_class_names(load_config("configs/Base-RetinaNet.yaml", list(opts)))) == 8


# Folders and Cityscapes


def test_a_folder_is_registered_from_the_config(folder):
    cfg = semantic_config(
        "DATASETS.SEMANTIC_FOLDERS", (str(folder),), "DATASETS.TRAIN", ("rooms_train",), num_classes=2
    )
    semantic_config("DATASETS.SEMANTIC_FOLDERS", (str(folder),))  # registering again has no effect
    (record,) = load("rooms_train")
    assert get_class_names(cfg) == ("wall", "floor")
    check_classes(cfg, cfg.DATASETS.TRAIN)
    assert (build_mapper(cfg)(record)["sem_seg"] == 1).all()


def test_a_link_to_a_folder_is_registered_by_its_own_name(folder, tmp_path):
    (tmp_path / "linked").symlink_to(folder)
    semantic_config("DATASETS.SEMANTIC_FOLDERS", (str(tmp_path / "linked"),))
    assert len(load("linked_train")) == 1


@pytest.mark.parametrize("missing", ["classes.txt", "images"])
def test_a_folder_of_another_make_is_refused_with_what_it_needs(folder, missing):
    (folder / missing).rename(folder / "other")
    with pytest.raises(FileNotFoundError, match=r"(?s)rooms needs .*classes.txt.*images/train.*labels/train"):
        semantic_config("DATASETS.SEMANTIC_FOLDERS", (str(folder),))


def test_a_folder_may_not_take_the_name_of_another_dataset(folder, tmp_path):
    register_semantic_folder("rooms_train", tmp_path, tmp_path, ["wall"])
    with pytest.raises(ValueError, match="'rooms_train'.*Rename the folder"):
        semantic_config("DATASETS.SEMANTIC_FOLDERS", (str(folder),))


def test_images_and_labels_are_paired_by_name_and_others_left_out(folder, caplog):
    """Images and labels are equally many, and Detectron2's loader would pair them by position."""
    for name in (
        "images/train/b.png",
        "images/train/sub/c.jpg",
        "labels/train/sub/c.png",
        "labels/train/d.png",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("L", (40, 30)).save(folder / name)
    semantic_config("DATASETS.SEMANTIC_FOLDERS", (str(folder),))
    with caplog.at_level(logging.WARNING):
        records = load("rooms_train")
    names = [(Path(r["file_name"]).stem, Path(r["sem_seg_file_name"]).stem) for r in records]
    assert names == [("a", "a"), ("c", "c")]
    assert "2 files of 3 images" in caplog.text


def test_folders_behind_links_are_read_and_hidden_files_are_not(folder, tmp_path):
    for kind in ("images", "labels"):
        (folder / kind / "train").rename(tmp_path / kind)
        (folder / kind / "train").mkdir()
        (folder / kind / "train/monday").symlink_to(tmp_path / kind)
        (tmp_path / kind / "._a.png").write_bytes(b"of macOS")
    semantic_config("DATASETS.SEMANTIC_FOLDERS", (str(folder),))
    assert len(load("rooms_train")) == 1


def test_a_file_without_class_names_is_named(folder):
    (folder / "classes.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"rooms/classes.txt is empty. Write the name of a class"):
        semantic_config("DATASETS.SEMANTIC_FOLDERS", (str(folder),))


def test_a_folder_without_labels_is_refused(folder):
    semantic_config("DATASETS.SEMANTIC_FOLDERS", (str(folder),))
    (folder / "labels/train/a.png").unlink()
    with pytest.raises(ValueError, match="rooms_train: .*no image in .*images/train has a label image"):
        load("rooms_train")
    (folder / "labels/train").rmdir()
    with pytest.raises(FileNotFoundError, match="'rooms_train' has no folder .*labels/train"):
        load("rooms_train")


def test_cityscapes_is_read_from_train_ids(tmp_path, catalogs):
    images, labels = (tmp_path / "cityscapes" / kind / "train/ulm" for kind in ("leftImg8bit", "gtFine"))
    for path in (images, labels):
        path.mkdir(parents=True)
    Image.new("RGB", (64, 32)).save(images / "ulm_0_leftImg8bit.png")
    for kind, value in (("instanceIds", 26), ("labelIds", 26)):
        Image.new("L", (64, 32), value).save(labels / f"ulm_0_gtFine_{kind}.png")
    (labels / "ulm_0_gtFine_polygons.json").write_text(json.dumps({"imgHeight": 32, "imgWidth": 64}))
    register_all_cityscapes(str(tmp_path))
    with pytest.raises(ValueError, match=r"labelTrainIds.*datasets/README.md"):
        load("cityscapes_fine_sem_seg_train")
    Image.new("L", (64, 32), 13).save(labels / "ulm_0_gtFine_labelTrainIds.png")
    cfg = semantic_config(
        *RECIPE, "INPUT.CROP.SIZE", [32, 64], "DATASETS.TRAIN", ("cityscapes_fine_sem_seg_train",)
    )
    (record,) = load("cityscapes_fine_sem_seg_train")
    check_classes(cfg, cfg.DATASETS.TRAIN)
    assert set(build_mapper(cfg)(record)["sem_seg"].unique().tolist()) <= {13, 255}


# Labels


def spoil_label(root: Path, fault: str) -> str:
    path = root / "labels/train/000000000003.png"
    with Image.open(path) as image:
        labels = image.copy()
    if fault == "out of range: 19, 254":
        labels.putpixel((0, 0), 19)
        labels.putpixel((1, 0), 254)
    elif fault == "mode 'RGB'":
        labels = labels.convert("RGB")
    elif fault == "mode 'I;16'":
        labels = Image.fromarray(np.asarray(labels).astype(np.uint16))
    elif fault == "but its image":
        labels = labels.crop((0, 0, labels.width - 1, labels.height))
    labels.save(path)
    if fault == "is broken":
        path.write_bytes(path.read_bytes()[:100])
    return path.name


FAULTS = ["out of range: 19, 254", "mode 'RGB'", "mode 'I;16'", "but its image"]


@pytest.mark.parametrize("fault", [*FAULTS, "is broken"])
def test_unusable_labels_are_refused_before_training(semantic_shapes, fault):
    name = spoil_label(semantic_shapes, fault)
    with pytest.raises(ValueError, match=f"(?s){name}.* {fault}"):
        load("train")


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_labels_are_refused_when_read(semantic_shapes, fault, is_train):
    records = load("train")
    name = spoil_label(semantic_shapes, fault)
    with pytest.raises(ValueError, match=f"{name}.* {fault}"):
        build_mapper(semantic_config(), is_train)(records[2])


def test_a_palette_changes_no_label(semantic_shapes):
    """Detectron2's mapper would read the brightness of the palette's colors."""
    record = load("train")[0]
    mapper = build_mapper(semantic_config("INPUT.RANDOM_FLIP", "none"))
    plain = mapper(record)["sem_seg"]
    with Image.open(record["sem_seg_file_name"]) as image:
        colored = image.convert("P")
        colored.putdata(list(image.getdata()))
    colored.putpalette(np.random.default_rng(0).integers(256, size=768).tolist())
    colored.save(record["sem_seg_file_name"])
    load("train")
    torch.testing.assert_close(mapper(record)["sem_seg"], plain)


def test_ignored_labels_are_in_range(semantic_shapes):
    record = load("train")[0]
    with Image.open(record["sem_seg_file_name"]) as image:
        Image.new("L", image.size, 255).save(record["sem_seg_file_name"])
    load("train")
    assert (build_mapper(semantic_config(*RECIPE))(record)["sem_seg"] == 255).all()


def labeled(root: Path, *values: list[int]) -> None:
    """Load images whose labels have these values."""
    for path in root.glob("*/train/*"):
        path.unlink()
    for i, wanted in enumerate(values):
        Image.new("RGB", (40, 30)).save(root / f"images/train/{i}.png")
        labels = np.resize(np.array(wanted, np.uint8), (30, 40))
        Image.fromarray(labels).save(root / f"labels/train/{i}.png")
    semantic_config("DATASETS.SEMANTIC_FOLDERS", (str(root),))
    load("rooms_train")


def told(caplog) -> list[tuple[str, str]]:
    return [(r.levelname, r.getMessage()) for r in caplog.records if "pixel" in r.getMessage()]


def test_a_class_without_a_pixel_is_told_and_that_255_is_ignored(folder, caplog):
    with caplog.at_level(logging.INFO):
        labeled(folder, [0, 255], [0])
    ((level, said),) = told(caplog)
    assert level == "WARNING"
    assert "rooms_train: 1 of 2 classes have no pixel in its 2 label images" in said
    assert (
        "'floor, flooring' (1). Pixels of 255 are ignored. If they are meant to be 'floor, flooring', "
        in said
    )
    assert said.endswith("change their value to 1.")


def test_a_class_without_a_pixel_is_told_where_nothing_is_ignored(folder, caplog):
    labeled(folder, [1], [1])
    ((_, said),) = told(caplog)
    assert said.endswith("cannot be learned or evaluated: 'wall' (0).")


def test_nothing_is_told_where_each_class_has_a_pixel(folder, caplog):
    with caplog.at_level(logging.INFO):
        labeled(folder, [0, 255], [1])
    assert told(caplog) == []


def test_a_class_alone_is_told(folder, caplog):
    (folder / "classes.txt").write_text("crack\n")
    labeled(folder, [0, 255])
    ((_, said),) = told(caplog)
    assert "has one class, 'crack'" in said


@pytest.mark.parametrize(("labels", "level"), [([0, 1, 2], "INFO"), ([0, 1], "WARNING")])
def test_in_a_part_of_the_label_images_a_few_classes_may_be_absent(
    folder, caplog, monkeypatch, labels, level
):
    monkeypatch.setattr("denseclip_d2.data.semantic.MAX_LABELS_READ", 2)
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    with caplog.at_level(logging.INFO):
        labeled(folder, labels, labels, labels, labels)
    ((told_as, said),) = told(caplog)
    assert told_as == level
    assert "no pixel in the 2 read of its 4 label images" in said


def test_a_perfect_prediction_has_full_marks(semantic_shapes):
    evaluator = SemSegEvaluator("val", distributed=False, sem_seg_loading_fn=read_labels)
    evaluator.reset()
    for record in load("val"):
        labels = torch.from_numpy(np.asarray(Image.open(record["sem_seg_file_name"]))).long()
        scores = torch.nn.functional.one_hot(labels, 19).permute(2, 0, 1)
        evaluator.process([record], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


# Agreement of model and dataset


def test_another_number_of_classes_or_ignored_label_is_refused(semantic_shapes):
    with pytest.raises(ValueError, match=r"'train' has 19 classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is 18"):
        check_classes(semantic_config(num_classes=18), ["train"])
    with pytest.raises(ValueError, match=r"'train' ignores label 255, MODEL.SEM_SEG_HEAD.IGNORE_VALUE is 0"):
        check_classes(semantic_config("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0), ["train"])
    vars(MetadataCatalog.get("val"))["ignore_label"] = 0
    with pytest.raises(ValueError, match=r"'train' ignores label 255, 'val' ignores label 0. Register all"):
        check_classes(semantic_config(), ["train", "val"])


def test_a_dataset_for_another_task_is_refused(semantic_shapes):
    with pytest.raises(ValueError, match="'train' has no thing_classes, which DenseCLIPRetinaNet needs"):
        check_classes(load_config("configs/Base-RetinaNet.yaml", []), ["train"])
    MetadataCatalog.get("boxes").thing_classes = ["dog"]
    with pytest.raises(ValueError, match="'boxes' has no stuff_classes, which SemanticSegmentor needs"):
        check_classes(semantic_config(), ["boxes"])

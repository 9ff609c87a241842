"""Training on your own data: values that a config takes from the data, and the command."""

import json
import math
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from test_engine import final_metrics, run_tool

from configs import prepared_cfg
from denseclip_d2.builder import build_model
from denseclip_d2.config import prepare_run
from denseclip_d2.config.custom_dataset import keep_schedule
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.data.custom_dataset import held_out_images
from denseclip_d2.data.dataset_folder import read_own
from denseclip_d2.engine import Trainer
from denseclip_d2.engine.summary import overrides_of
from denseclip_d2.evaluation.build import check_test_sets
from denseclip_d2.report import write_report
from denseclip_d2.shapes.dataset import SEMANTIC_CLASS_NAMES, generate_shapes

CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"
MASKS = "configs/Shapes/denseclip_mask_rcnn_tiny.yaml"
SEMANTIC = "configs/Shapes/denseclip_semantic_fpn_tiny.yaml"
PANOPTIC = "configs/Shapes/systems/panoptic_fpn.yaml"
COCO = "configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml"
SIX = ("cat", "dog", "garden gnome", "wheelbarrow", "watering can", "rake")


@pytest.fixture
def folder(tmp_path, catalogs):
    """Write a folder "my" with train.json, val.json and images: 20 and 4 images. Each fifth is empty."""
    root = tmp_path / "my"
    (root / "images").mkdir(parents=True)
    categories = [{"id": 7 + 3 * i, "name": name} for i, name in enumerate(SIX)]
    for split, count in (("train", 20), ("val", 4)):
        images, annotations = [], []
        for i in range(count):
            name = f"{split}_{i}.png"
            Image.new("RGB", (64, 48), (10 * i, 90, 120)).save(root / "images" / name)
            images.append({"id": i + 1, "file_name": name, "width": 64, "height": 48})
            if i % 5 == 0:
                continue
            x = 4 + i
            annotation = {
                "id": i + 1,
                "image_id": i + 1,
                "category_id": categories[i % 6]["id"],
                "iscrowd": 0,
            }
            annotation |= {"bbox": [x, 8, 24, 20], "area": 480}
            annotation |= {"segmentation": [[x, 8, x + 24, 8, x + 24, 28, x, 28]]}
            annotations.append(annotation)
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def own(root: Path, *opts, config: str = CONFIG, val: bool = False):
    """Return the config of a training on these images with its outputs in the folder of the test."""
    keys = ["DATASETS.CUSTOM.TRAIN", (str(root / "train.json"), str(root / "images"))]
    keys += ["DATASETS.CUSTOM.VAL", (str(root / "val.json"), str(root / "images"))] if val else []
    return prepared_cfg(config, [*keys, "OUTPUT_DIR", str(root / "output"), *opts])


def test_a_run_is_compared_with_its_config_file_alone(folder):
    """The file may name the data itself: then only the command line's pairs differ."""
    source = ["DATASETS.CUSTOM.TRAIN", (str(folder / "train.json"), str(folder / "images"))]
    cfg, reference = prepare_run(CONFIG, [*source, "SOLVER.BASE_LR", 0.5])
    assert (reference.DATASETS.TRAIN, reference.SOLVER.MAX_ITER) == (("shapes_train",), 1000)
    lines = overrides_of(reference, cfg)
    assert any(line.startswith("DATASETS.TRAIN: ") for line in lines)
    assert not any("DENSECLIP.CLASS_NAMES" in line for line in lines)
    file = folder / "file.yaml"
    file.write_text(f"_BASE_: {Path(CONFIG).resolve()}\nDATASETS: {{CUSTOM: {{TRAIN: {[*source[1]]}}}}}\n")
    cfg, reference = prepare_run(str(file), ["SOLVER.MAX_ITER", 7])
    assert (cfg.SOLVER.MAX_ITER, reference.SOLVER.MAX_ITER) == (7, 500)
    assert {line.partition(":")[0] for line in overrides_of(reference, cfg)} == {
        "SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS",
    }  # fmt: skip


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# Values that depend on the data


def test_classes_come_from_the_file(folder):
    cfg = own(folder, val=True)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("my_train",), ("my_val",))
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 6
    assert cfg.MODEL.DENSECLIP.CLASS_NAMES == SIX
    assert own(folder, config=MASKS).MODEL.ROI_HEADS.NUM_CLASSES == 6


def test_names_that_the_config_has_for_others_are_not_taken(folder):
    """The configs of ADE20K list its names. The configs of COCO have positions for names of three tokens."""
    cfg = own(folder, "MODEL.WEIGHTS", "", config=COCO)
    assert (cfg.MODEL.DENSECLIP.CLASS_NAMES, cfg.MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS) == (SIX, 0)
    names = tuple(name.upper() for name in SIX)
    cfg = own(folder, "MODEL.DENSECLIP.CLASS_NAMES", names)
    assert names == cfg.MODEL.DENSECLIP.CLASS_NAMES


@pytest.mark.parametrize(("asked", "federated"), [(4, True), (6, False)])
def test_lviss_federated_loss_takes_frequencies_from_the_file(folder, asked, federated):
    config = folder / "federated.yaml"
    config.write_text(
        f"_BASE_: {Path(MASKS).resolve()}\n"
        "MODEL:\n  ROI_BOX_HEAD: {USE_SIGMOID_CE: True, USE_FED_LOSS: True, "
        f"FED_LOSS_NUM_CLASSES: {asked}}}\n"
    )
    cfg = own(folder, config=str(config))
    assert federated == cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS  # otherwise every batch would have all classes
    objects = json.loads((folder / "train.json").read_text())["annotations"]
    count = Counter(annotation["category_id"] for annotation in objects)  # one per image
    weights = get_fed_loss_cls_weights(cfg.DATASETS.TRAIN)
    assert weights.tolist() == [count[id_] for id_ in sorted(count)]
    with EventStorage():
        losses = build_model(cfg)(next(iter(Trainer.build_train_loader(cfg))))
    assert losses["loss_cls"].isfinite()


def test_a_part_is_held_out_by_seed_and_nothing_is_lost(folder):
    cfg = own(folder)
    train, test = (DatasetCatalog.get(name[0]) for name in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST))
    assert (len(train), len(test)) == (16, 4)
    names = Counter(record["file_name"] for record in [*train, *test])
    assert len(names) == 20 and set(names.values()) == {1}
    assert own(folder).DATASETS.TEST == cfg.DATASETS.TEST
    other = DatasetCatalog.get(own(folder, "SEED", 2).DATASETS.TEST[0])
    assert {r["file_name"] for r in other} != {r["file_name"] for r in test}
    cfg = own(folder, "DATASETS.CUSTOM.VAL_FRACTION", 0.0)
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("my_train",), ())


def test_few_held_out_images_change_when_images_are_added():
    images = [f"{i}.jpg" for i in range(100)]
    before, after = held_out_images(images, 0.2, 1), held_out_images([*images, "new.jpg"], 0.2, 1)
    assert len(before) == len(after) == 20
    assert len(before - after) <= 1
    assert held_out_images(["a", "b"], 0.9, 0) and len(held_out_images(["a", "b"], 0.01, 0)) == 1


def test_the_held_out_part_is_evaluated_under_the_files_own_ids(folder):
    cfg = own(folder)
    name = cfg.DATASETS.TEST[0]
    check_test_sets(cfg)
    Trainer.build_evaluator(cfg, name)
    file = Path(MetadataCatalog.get(name).json_file)
    written = json.loads(file.read_text())
    before = file.stat().st_mtime_ns
    Trainer.build_evaluator(cfg, name)
    assert file.stat().st_mtime_ns == before  # each evaluation of a training would write the same
    assert [c["id"] for c in written["categories"]] == [7, 10, 13, 16, 19, 22]
    assert len(written["images"]) == 4
    edit(folder / "train.json", lambda c: c["images"].pop())
    cfg = own(folder)  # an earlier run's file must not replace this run's
    Trainer.build_evaluator(cfg, name)
    again = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
    assert {i["file_name"] for i in again["images"]} == {
        Path(r["file_name"]).name for r in DatasetCatalog.get(name)
    }


# The schedule


def schedule(cfg) -> tuple:
    return cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.TEST.EVAL_PERIOD


def test_the_schedule_is_for_the_number_of_images_and_not_too_short(folder):
    """Of 20 images, 16 have boxes. Detectron2 trains on these only, but the tiny configs use all."""
    assert schedule(own(folder, config=COCO, val=True)) == (500, (333, 458), 50, 0)
    cfg = own(folder, "DATASETS.CUSTOM.MIN_ITER", 1, config=COCO, val=True)
    assert (round(87960 * 16 / 117266), 16) == (cfg.SOLVER.MAX_ITER, cfg.SOLVER.REFERENCE_IMAGES)
    assert own(folder, val=True).SOLVER.REFERENCE_IMAGES == 20
    assert own(folder).SOLVER.REFERENCE_IMAGES == 16
    assert own(folder, "DATASETS.CUSTOM.MIN_ITER", 2000).SOLVER.MAX_ITER == 1000  # the config's
    assert own(folder, "SOLVER.REFERENCE_IMAGES", 0).SOLVER.REFERENCE_IMAGES == 0


def test_what_is_set_by_hand_stays_and_the_rest_follows(folder):
    assert schedule(own(folder, "SOLVER.MAX_ITER", 200)) == (200, (156, 186), 20, 0)
    cfg = own(folder, "SOLVER.MAX_ITER", 200, "SOLVER.STEPS", (100,), "TEST.EVAL_PERIOD", 50)
    assert schedule(cfg) == (200, (100,), 20, 50)
    assert schedule(own(folder, "SOLVER.MAX_ITER", 2)) == (2, (1,), 0, 0)
    for key in ("MAX_NAME_TOKENS", "NAME_LENGTH"):  # also as earlier versions called it
        cfg = own(folder, f"MODEL.DENSECLIP.PROMPT.{key}", 9)
        assert cfg.MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS == 9


def test_a_runs_own_config_is_left_as_it_is(folder):
    cfg = own(folder, "SOLVER.MAX_ITER", 200, "MODEL.DENSECLIP.CLASS_NAMES", tuple("abcdef"))
    (folder / "config.yaml").write_text(cfg.dump())
    again = prepared_cfg(str(folder / "config.yaml"), [])
    assert again.DATASETS == cfg.DATASETS and schedule(again) == schedule(cfg)
    assert again.MODEL.DENSECLIP == cfg.MODEL.DENSECLIP


def test_a_runs_own_config_takes_other_images_to_evaluate_on(folder):
    cfg = own(folder, val=True)
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "new.json").write_bytes((folder / "val.json").read_bytes())
    new = ["DATASETS.CUSTOM.VAL", (str(folder / "new.json"), str(folder / "images"))]
    again = prepared_cfg(str(folder / "config.yaml"), new)
    assert (again.DATASETS.TRAIN, again.DATASETS.TEST) == (cfg.DATASETS.TRAIN, ("my_new",))


def test_a_run_that_goes_on_keeps_its_schedule(folder):
    """Even if images were added since. The schedule is in the run's config.yaml."""
    arguments = ("--train", folder / "train.json", folder / "images", "OUTPUT_DIR", folder / "output")
    few = ("SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0)
    done = run_tool("train_net.py", *arguments, *few, "SOLVER.MAX_ITER", 2, datasets=folder)
    assert done.returncode == 0, done.stderr
    log = (folder / "output/log.txt").read_text()
    assert "for 16 images: warm-up 0, lower rate at 1, evaluation at the end" in log
    edit(folder / "train.json", lambda c: c["images"].pop(0))
    done = run_tool("train_net.py", *arguments[:3], "--resume", *arguments[3:], *few, datasets=folder)
    assert done.returncode == 0, done.stderr
    kept = prepared_cfg(str(folder / "output/config.yaml"), [])
    assert (kept.SOLVER.MAX_ITER, kept.SOLVER.REFERENCE_IMAGES) == (2, 16)
    assert "ended: 2 iterations" in (folder / "output/report.html").read_text()
    assert (folder / "output/log.txt").read_text().count("The report of this run") == 2  # one per command


# Label maps


@pytest.mark.parametrize("with_val", [True, False])
def test_a_folder_of_label_images(tmp_path, catalogs, with_val):
    generate_shapes(tmp_path / "shapes", num_train=10, num_val=4, seed=3)
    root = tmp_path / "rooms"
    for split in ("train", "val") if with_val else ("train",):
        shutil.copytree(tmp_path / "shapes" / split, root / "images" / split)
        shutil.copytree(tmp_path / "shapes/labels" / split, root / "labels" / split)
    (root / "classes.txt").write_text("\n".join(SEMANTIC_CLASS_NAMES))
    opts = ["SOLVER.MAX_ITER", 1, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(tmp_path / "output")]
    cfg = prepared_cfg(SEMANTIC, ["DATASETS.CUSTOM.SEMANTIC", str(root), *opts])
    sizes = [len(DatasetCatalog.get(name)) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)]
    assert sizes == ([10, 4] if with_val else [8, 2])
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 19
    if not with_val:
        Trainer(cfg).train()
        assert math.isfinite(final_metrics(tmp_path / "output")["sem_seg/mIoU"])
    (root / "images/train").rename(root / "images/training")
    DatasetCatalog.clear()
    with pytest.raises(ValueError, match="--train-semantic.*has no images/train"):
        prepared_cfg(SEMANTIC, ["DATASETS.CUSTOM.SEMANTIC", str(root)])


# Data that cannot be used


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda c: c.pop("categories"), "not in COCO's format.*there is no 'categories'.*own_data.md"),
        (lambda c: c.update(categories=[]), "there are no categories"),
        (lambda c: c.update(annotations=[]), "there are no annotations"),
        (lambda c: c["annotations"][0].pop("segmentation"), "needs masks, and 1 of the 16 annotations"),
        (lambda c: c["annotations"][0].update(segmentation=[]), "needs masks, and 1 of the 16 annotations"),
    ],
)
def test_a_file_that_cannot_be_learned_from(folder, change, error):
    edit(folder / "train.json", change)
    with pytest.raises(ValueError, match=error):
        own(folder, config=MASKS)


@pytest.mark.parametrize("text", ["", "[]", "filepath\ttitle\n"])
def test_another_file_is_not_cocos(folder, text):
    (folder / "train.json").write_text(text)
    with pytest.raises(ValueError, match="train.json.* is not in COCO's format"):
        own(folder)


def test_a_file_that_is_spoiled_later_is_told_by_its_reader(folder):
    names = own(folder).DATASETS.TRAIN
    edit(folder / "train.json", lambda c: c["images"][0].pop("file_name"))
    read_own.cache_clear()
    with pytest.raises(ValueError, match="^/.*train.json: image 1 has the file_name None"):
        load_datasets(names, filter_empty=True, check_images=False)


def test_what_is_not_there(folder):
    for missing, error in (("images", "no folder .*images"), ("train.json", "no file .*train.json")):
        (folder / missing).rename(folder / "elsewhere")
        with pytest.raises(FileNotFoundError, match=error):
            own(folder)
        (folder / "elsewhere").rename(folder / missing)
    (folder / "images/train_1.png").unlink()
    cfg = own(folder, "DATASETS.CUSTOM.VAL_FRACTION", 0.0)
    with pytest.raises(
        ValueError, match="(?s)1 of 20 images of .*train.json.* cannot be used.*train_1.png is missing"
    ):
        Trainer(cfg)


def test_options_that_do_not_go_together(folder):
    source = (str(folder / "val.json"), str(folder / "images"))
    for opts, config, error in (
        (["DATASETS.CUSTOM.VAL", source], CONFIG, r"\(--val\) needs .*\(--train\)"),
        (["DATASETS.CUSTOM.TRAIN", source], SEMANTIC, r"SemanticFPN takes .*SEMANTIC \(--train-semantic\)"),
        (["DATASETS.CUSTOM.SEMANTIC", "my"], CONFIG, r"DenseCLIPRetinaNet takes .*TRAIN \(--train\)"),
        (["DATASETS.CUSTOM.TRAIN", source[:1]], CONFIG, "val.json needs the folder of its images"),
        (["DATASETS.CUSTOM.TRAIN", source], PANOPTIC, "needs objects and label maps"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=error):
            prepared_cfg(config, opts)
    edit(folder / "train.json", lambda c: c.update(images=c["images"][1:2]))
    with pytest.raises(ValueError, match="1 training image: none can be held out.*VAL_FRACTION to 0"):
        own(folder)
    assert own(folder, "DATASETS.CUSTOM.VAL_FRACTION", "0").DATASETS.TEST == ()


@pytest.mark.parametrize("name", ["Dog ", "dog", ""])
def test_names_that_do_not_tell_classes_apart(folder, name):
    edit(folder / "train.json", lambda c: c["categories"][0].update(name=name))
    with pytest.raises(ValueError, match="more than once: 'dog'|class 0 is empty"):
        Trainer(own(folder))


def test_files_called_alike_are_told_apart_by_their_folders(folder, tmp_path):
    """CVAT calls the file of every task annotations/instances_default.json."""
    sources = {}
    for task, split in (("task1", "train"), ("task2", "val")):
        (tmp_path / task / "annotations").mkdir(parents=True)
        file = tmp_path / task / "annotations/instances_default.json"
        shutil.copy(folder / f"{split}.json", file)
        sources[split] = (str(file), str(folder / "images"))
    opts = ["DATASETS.CUSTOM.TRAIN", sources["train"], "DATASETS.CUSTOM.VAL", sources["val"]]
    for _ in range(2):  # loaded again, the names are the same
        cfg = prepared_cfg(CONFIG, opts)
        assert cfg.DATASETS.TRAIN == ("annotations_instances_default",)
        assert cfg.DATASETS.TEST == ("task2_annotations_instances_default",)
    assert [len(DatasetCatalog.get(name)) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)] == [20, 4]


def test_a_file_is_called_by_the_link_that_leads_to_it(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/link.json").symlink_to(folder / "train.json")
    source = (str(tmp_path / "mine/link.json"), str(folder / "images"))
    assert prepared_cfg(CONFIG, ["DATASETS.CUSTOM.TRAIN", source]).DATASETS.TRAIN[0].startswith("mine_link_")


def test_one_file_with_two_folders_of_images_is_two_datasets(folder):
    """Also where every end of its path is the name of the first."""
    shutil.copytree(folder / "images", folder / "dark")
    file = str(folder / "train.json")
    train, val = (file, str(folder / "images")), (file, str(folder / "dark"))
    for name in ["_".join(folder.parts[-length:]) for length in range(1, len(folder.parts))]:
        DatasetCatalog.register(f"{name}_train", list)
    cfg = prepared_cfg(CONFIG, ["DATASETS.CUSTOM.TRAIN", train, "DATASETS.CUSTOM.VAL", val])
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("train_2",), ("train_3",))
    for name, parent in (("train_2", "images"), ("train_3", "dark")):
        assert {Path(r["file_name"]).parent.name for r in DatasetCatalog.get(name)} == {parent}


# Folders


def test_a_yolo_folder_is_trained_and_evaluated_on_its_own_parts(folder):
    """The same objects as in the COCO files, and the validation images of the folder."""
    root = folder / "yolo"
    for split in ("train", "val"):
        content = json.loads((folder / f"{split}.json").read_text())
        (root / "labels" / split).mkdir(parents=True)
        (root / "images" / split).mkdir(parents=True)
        for image in content["images"]:
            shutil.copy(folder / "images" / image["file_name"], root / "images" / split)
            boxes = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            lines = [
                f"{(a['category_id'] - 7) // 3} {(x + w / 2) / 64} {(y + h / 2) / 48} {w / 64} {h / 48}\n"
                for a in boxes
                for x, y, w, h in [a["bbox"]]
            ]
            (root / "labels" / split / image["file_name"]).with_suffix(".txt").write_text("".join(lines))
    names = "\n".join(f"  {i}: {name}" for i, name in enumerate(SIX))
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}\n")
    source = (str(root / "data.yaml"),)
    expected = {r["file_name"].split("/")[-1]: r for r in registered(own(folder, val=True), "TRAIN")}
    for _ in range(2):
        cfg = prepared_cfg(CONFIG, ["DATASETS.CUSTOM.TRAIN", source, "OUTPUT_DIR", str(folder / "output")])
        assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("yolo_train",), ("yolo_val",))
    assert cfg.MODEL.DENSECLIP.CLASS_NAMES == SIX and cfg.SOLVER.REFERENCE_IMAGES == 20
    records = registered(cfg, "TRAIN")
    assert len(records) == len(expected) and len(registered(cfg, "TEST")) == 4
    for record in records:
        truth = expected[record["file_name"].split("/")[-1]]["annotations"]
        assert [a["category_id"] for a in record["annotations"]] == [a["category_id"] for a in truth]
        for found, right in zip(record["annotations"], truth, strict=True):
            assert found["bbox"] == pytest.approx(right["bbox"], abs=0.01)
    assert evaluate_truth(cfg)["AP"] == pytest.approx(100)
    label = root / "labels/train/train_1.txt"
    label.write_text("")  # read again, because a file has changed
    prepared_cfg(CONFIG, ["DATASETS.CUSTOM.TRAIN", source])
    assert sum(bool(r["annotations"]) for r in registered(cfg, "TRAIN")) == 15


def registered(cfg, split: str) -> list[dict]:
    return DatasetCatalog.get(cfg.DATASETS[split][0])


# The classes of --val


def classes_of(cfg) -> list[list[str]]:
    """Return the classes of the objects of each test image."""
    name = cfg.DATASETS.TEST[0]
    names = MetadataCatalog.get(name).thing_classes
    return [[names[a["category_id"]] for a in r["annotations"]] for r in DatasetCatalog.get(name)]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["categories"].reverse(),
        lambda c: renumber(c, lambda id_: 100 - id_),
        lambda c: renumber(c, str),
        lambda c: renumber(c, "category {}".format),
        lambda c: c.update(categories=[x for x in c["categories"] if x["id"] in (10, 13, 16)]),
        lambda c: c["categories"].append({"id": 1, "name": "without objects"}),
    ],
    ids=["listed in reverse", "other order", "strings", "words", "fewer", "one more, without objects"],
)
def test_the_classes_of_val_are_matched_by_name(folder, change):
    """Perfect detections have AP 100 in every class with objects. The other classes have no AP."""
    own(folder, val=True)
    expected = [[SIX[i]] if i else [] for i in range(4)]
    edit(folder / "val.json", change)
    cfg = own(folder, val=True)
    assert classes_of(cfg) == expected
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 6
    results = evaluate_truth(cfg)
    by_class = {name: results[f"AP-{name}"] for name in SIX}
    assert all(by_class[name] == pytest.approx(100) for name in SIX[1:4]), by_class
    assert all(math.isnan(by_class[name]) for name in (SIX[0], *SIX[4:])), by_class
    written = json.loads((folder / "output/inference" / cfg.DATASETS.TEST[0] / RESULTS).read_text())
    own_ids = {c["id"]: c["name"] for c in json.loads((folder / "val.json").read_text())["categories"]}
    assert [own_ids[result["category_id"]] for result in written] == [*SIX[1:4]]


@pytest.mark.parametrize("split", ["train", "val"])
def test_classes_that_share_a_name_are_not_matched(folder, split):
    edit(folder / f"{split}.json", lambda c: c["categories"].append({"id": 1, "name": SIX[1]}))
    with pytest.raises(ValueError, match=rf"{split}.json has several categories with the name 'dog'"):
        own(folder, val=True)


def test_names_of_images_in_another_encoding_are_held_out_as_others(folder):
    name = os.fsdecode("für.png".encode("latin-1"))  # as listed in a folder
    (folder / "images/train_1.png").rename(folder / "images" / name)
    edit(folder / "train.json", lambda c: c["images"][1].update(file_name=name))
    cfg = own(folder)
    records = [r for split in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) for r in DatasetCatalog.get(split[0])]
    assert sum(Path(record["file_name"]).name == name for record in records) == 1
    assert all(Path(record["file_name"]).is_file() for record in records)


RESULTS = "coco_instances_results.json"


def renumber(content: dict, change) -> None:
    for category in content["categories"]:
        category["id"] = change(category["id"])
    for annotation in content["annotations"]:
        annotation["category_id"] = change(annotation["category_id"])


def evaluate_truth(cfg) -> dict:
    """Return the metrics of detections that equal the ground truth."""
    name = cfg.DATASETS.TEST[0]
    evaluator = Trainer.build_evaluator(cfg, name)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        found = Instances((record["height"], record["width"]))
        boxes = torch.tensor([a["bbox"] for a in record["annotations"]]).reshape(-1, 4).float()
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes, found.scores = Boxes(boxes), torch.full((len(boxes),), 0.9)
        found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]], dtype=int)
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


def test_names_that_are_not_trained_are_refused_with_both_files(folder):
    edit(folder / "val.json", lambda c: c["categories"][1].update(name="hound"))
    with pytest.raises(ValueError, match=r"val.json has objects of 'hound'.*train.json: 'cat', 'dog'"):
        own(folder, val=True)


def test_classes_in_another_order_are_not_gone_on_with(folder):
    cfg = own(folder, "SOLVER.MAX_ITER", 2)
    output = folder / "output"
    output.mkdir()
    (output / "config.yaml").write_text(cfg.dump())
    (output / "last_checkpoint").write_text("model_0000001.pth")
    keep_schedule(own(folder), [])
    assert prepared_cfg(str(output / "config.yaml"), []).DATASETS.CUSTOM.CLASS_NAMES == SIX
    edit(folder / "train.json", lambda c: c["categories"][0].update(id=99))
    edit(folder / "train.json", lambda c: [a.update(category_id=10) for a in c["annotations"]])
    with pytest.raises(ValueError, match=r"now dog.*, cat. Those of the run in .*output are cat, dog"):
        keep_schedule(own(folder), ["SOLVER.MAX_ITER"])
    (output / "config.yaml").write_text(cfg.dump().replace("CUSTOM:", "OWN:"))  # of an earlier version
    with pytest.raises(ValueError, match="Those of the run in"):
        keep_schedule(own(folder), ["SOLVER.MAX_ITER"])
    (output / "config.yaml").write_text(cfg.dump())
    with pytest.raises(ValueError, match=r"now dog.*, cat. Those of this config are cat, dog"):
        prepared_cfg(str(output / "config.yaml"), [])


# The command


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, MASKS])
def test_photographs_in_one_command(coco_root, tmp_path, config):
    """Photographs with a dozen of COCO's classes under other names and file names, without an OUTPUT_DIR."""
    for split in ("train", "val"):
        write_photographs(coco_root / "coco", split, tmp_path)
    source = {split: (tmp_path / f"{split}.json", tmp_path / "photos") for split in ("train", "val")}
    few = {
        "SOLVER.MAX_ITER": 2, "SOLVER.IMS_PER_BATCH": 2, "DATALOADER.NUM_WORKERS": 0,
        "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "TEST.DETECTIONS_PER_IMAGE": 10, "OUTPUT_DIR": tmp_path / "output",
        "MODEL.WEIGHTS": f"denseclip://Shapes/{Path(config).name}",
    }  # fmt: skip
    options = [
        "--train",
        *source["train"],
        "--val",
        *source["val"],
        *(x for pair in few.items() for x in pair),
    ]
    done = run_tool("train_net.py", *options, datasets=tmp_path, config=config)
    assert done.returncode == 0, done.stderr
    metrics = final_metrics(tmp_path / "output")
    assert math.isfinite(metrics["bbox/AP"]) and metrics["loss_pixel_text"] > 0
    per_class = [key for key in metrics if key.startswith("bbox/AP-")]
    assert sorted(per_class) == sorted(f"bbox/AP-my {name}" for name in DOZEN)
    assert ("segm/AP" in metrics) == (config == MASKS)
    report = (tmp_path / "output/report.html").read_text()
    assert f"<b>{metrics['bbox/AP']:.1f}</b>" in report
    assert all(f"my {name}" in report for name in DOZEN)
    assert 4 <= report.count('alt="ground truth, val_') <= 8
    assert report.count("score map: my ") > 4
    # Another process reads the data from the run's config alone.
    again = write_report(tmp_path / "output", tmp_path / "again.html").read_text()
    assert again.count("data:image/jpeg") == report.count("data:image/jpeg")


DOZEN = (
    "banana", "book", "bottle", "bowl", "car", "carrot", "chair", "cup", "handbag", "laptop", "person",
    "traffic light",
)  # fmt: skip


def write_photographs(coco: Path, split: str, root: Path) -> None:
    """Write the first eight photographs with objects of the dozen classes."""
    content = json.loads((coco / f"annotations/instances_{split}2017.json").read_text())
    ids = {c["id"]: 900 - c["id"] for c in content["categories"] if c["name"] in DOZEN}
    shown = {a["image_id"] for a in content["annotations"] if a["category_id"] in ids and not a["iscrowd"]}
    content["images"] = [image for image in content["images"] if image["id"] in shown][:8]
    (root / "photos").mkdir(exist_ok=True)
    for number, image in enumerate(content["images"]):
        name = f"{split}_{number}.jpg"
        shutil.copy(coco / f"{split}2017" / image["file_name"], root / "photos" / name)
        image["file_name"] = name
    named = {c["id"]: c["name"] for c in content["categories"]}
    content["categories"] = [{"id": new, "name": f"my {named[old]}"} for old, new in ids.items()]
    images = {image["id"] for image in content["images"]}
    kept = [a for a in content["annotations"] if a["category_id"] in ids and a["image_id"] in images]
    content["annotations"] = [{**a, "category_id": ids[a["category_id"]]} for a in kept]
    (root / f"{split}.json").write_text(json.dumps(content))

"""What data for semantic segmentation promise: preparation, registration, augmentation, checks."""

import importlib.util
import json
import logging
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets.builtin import register_all_ade20k, register_all_cityscapes
from detectron2.evaluation import SemSegEvaluator
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image

from denseclip_d2.data import get_class_names, register_semantic_folder
from denseclip_d2.data.checks import check_classes, load_datasets
from denseclip_d2.data.mapper import SemanticMapper, build_mapper
from denseclip_d2.data.semantic import read_labels
from denseclip_d2.data.shapes import SEMANTIC_CLASS_NAMES, generate_shapes
from denseclip_d2.data.transforms import RandomScaleShortestEdge
from denseclip_d2.engine import Trainer, load_config
from denseclip_d2.language.prompts import check_class_names, tokenize_names
from denseclip_d2.random_state import seeded_random

BASE = "configs/Base-DenseCLIP.yaml"
# The recipe's augmentations, at a quarter of its sizes.
RECIPE = (
    "INPUT.MIN_SIZE_TRAIN", (128,), "INPUT.MAX_SIZE_TRAIN", 512, "INPUT.SCALE_RANGE_TRAIN", (0.5, 2.0),
    "INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [128, 128],
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.75, "INPUT.COLOR_AUG_SSD", True,
)  # fmt: skip


def semantic_config(*opts, num_classes: int = 19):
    head = ("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", num_classes)
    return load_config(BASE, [*head, *opts])


def load(name: str, check_images: bool = True) -> list[dict]:
    return load_datasets([name], filter_empty=True, check_images=check_images)


@pytest.fixture
def catalogs(monkeypatch):
    """Catalogs without datasets, to register those of other folders under their names."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})


@pytest.fixture
def shapes(tmp_path, catalogs):
    """A few images of "shapes", registered as "train" and "val"."""
    root = tmp_path / "shapes"
    generate_shapes(root, num_train=8, num_val=4, seed=3)
    for split in ("train", "val"):
        register_semantic_folder(split, root / split, root / "labels" / split, SEMANTIC_CLASS_NAMES)
    return root


@pytest.fixture
def folder(tmp_path, catalogs):
    """A folder of a photograph and its labels, to be registered from a config."""
    root = tmp_path / "rooms"
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    (root / "classes.txt").write_text("wall\nfloor, flooring\n")
    Image.new("RGB", (40, 30)).save(root / "images/train/a.JPG", format="jpeg")
    Image.new("L", (40, 30), 1).save(root / "labels/train/a.png")
    return root


# ADE20K


@pytest.fixture
def prepare():
    """The script, which is not part of a package."""
    path = Path(__file__).parents[1] / "datasets" / "prepare_ade20k.py"
    spec = importlib.util.spec_from_file_location("prepare_ade20k", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ade20k(tmp_path) -> Path:
    """A dataset as downloaded, but for the number of its images: three and two."""
    root = tmp_path / "ADEChallengeData2016"
    values = np.linspace(0, 150, 40 * 30).astype(np.uint8).reshape(30, 40)
    for split, count in (("training", 3), ("validation", 2)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 30)).save(root / "images" / split / f"ADE_{i:08d}.jpg")
            Image.fromarray(np.roll(values, i)).save(root / "annotations" / split / f"ADE_{i:08d}.png")
    return root


def made(root: Path) -> dict[Path, float]:
    """The files that the script made, with their times."""
    return {path: path.stat().st_mtime_ns for path in (root / "annotations_detectron2").rglob("*.*")}


def test_prepared_ade20k_is_what_detectron2_reads(prepare, ade20k, catalogs):
    prepare.main(["--root", str(ade20k), "--allow-partial"])
    register_all_ade20k(str(ade20k.parent))
    records = load("ade20k_sem_seg_train")
    assert len(records) == 3
    assert len(load("ade20k_sem_seg_val")) == 2
    mapper = build_mapper(
        semantic_config("INPUT.MIN_SIZE_TRAIN", (30,), "INPUT.RANDOM_FLIP", "none", num_classes=150)
    )
    original = np.asarray(Image.open(ade20k / "annotations/training/ADE_00000001.png")).astype(int)
    expected = np.where(original == 0, 255, original - 1)
    np.testing.assert_array_equal(mapper(records[1])["sem_seg"], expected)


def test_preparing_again_does_what_is_missing_and_nothing_else(prepare, ade20k, capsys):
    arguments = ["--root", str(ade20k), "--allow-partial"]
    prepare.main(arguments)
    before = made(ade20k)
    first = min(before)
    content = first.read_bytes()
    first.unlink()
    prepare.main(arguments)
    assert "5 images, 1 of them new" in capsys.readouterr().out
    after = made(ade20k)
    assert first.read_bytes() == content
    assert before.pop(first) != after.pop(first)
    assert after == before


def test_an_interrupted_preparation_leaves_no_half_written_labels(prepare, ade20k, monkeypatch):
    def interrupt(image, file, **kwargs):
        Path(file).write_bytes(b"\x89PNG")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare.main(["--root", str(ade20k), "--allow-partial"])
    assert not made(ade20k)


def test_ade20k_is_prepared_from_its_zip_file(prepare, ade20k, tmp_path):
    archive = tmp_path / "downloaded.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in ade20k.rglob("*.*"):
            file.write(path, path.relative_to(tmp_path))
    root = tmp_path / "elsewhere" / "ADEChallengeData2016"
    prepare.main(["--root", str(root), "--zip", str(archive), "--allow-partial"])
    assert len(made(root)) == 5
    assert [path.name for path in root.parent.iterdir()] == [root.name]


def spoil(root: Path, fault: str) -> None:
    label = root / "annotations/validation/ADE_00000001.png"
    if fault == "have no counterpart":
        label.unlink()
    elif fault == "is broken":
        label.write_bytes(label.read_bytes()[:60])
    elif fault == "other labels":
        Image.new("L", (40, 30), 151).save(label)
    else:  # the dataset's other edition has coloured labels
        Image.new("RGB", (40, 30)).save(label)


@pytest.mark.parametrize("fault", ["have no counterpart", "is broken", "other labels", "other labels than"])
def test_what_is_no_ade20k_is_refused_by_name(prepare, ade20k, fault):
    spoil(ade20k, fault)
    with pytest.raises(SystemExit, match=f"error: .*ADEChallengeData2016.*{fault}"):
        prepare.main(["--root", str(ade20k), "--allow-partial"])


def test_an_incomplete_ade20k_is_refused_unless_wanted(prepare, ade20k):
    with pytest.raises(SystemExit, match="has 3 of the 20210 training images.*--allow-partial"):
        prepare.main(["--root", str(ade20k)])


def test_without_ade20k_the_ways_to_get_it_are_told(prepare, tmp_path, monkeypatch):
    root = tmp_path / "new" / "ADEChallengeData2016"
    with pytest.raises(SystemExit, match="--zip FILE or --download"):
        prepare.main(["--root", str(root)])
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(b"PK\x03\x04")
    with pytest.raises(SystemExit, match="damaged.zip is damaged"):
        prepare.main(["--root", str(root), "--zip", str(damaged)])
    monkeypatch.setattr(prepare, "URL", "http://127.0.0.1:1/ADEChallengeData2016.zip")
    with pytest.raises(SystemExit, match="could not be fetched to .*refused.*give --zip FILE"):
        prepare.main(["--root", str(root), "--download"])
    assert not list(root.parent.iterdir())


def test_missing_ade20k_is_refused_with_the_script_that_makes_it(monkeypatch, tmp_path):
    metadata = MetadataCatalog.get("ade20k_sem_seg_train")
    monkeypatch.setitem(vars(metadata), "sem_seg_root", str(tmp_path / "none"))
    monkeypatch.setitem(vars(metadata), "image_root", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"has no folder .*none\. .*prepare_ade20k.py"):
        load("ade20k_sem_seg_train")


# Class names


def test_ade20k_names_are_the_first_synonyms():
    cfg = semantic_config("DATASETS.TRAIN", ("ade20k_sem_seg_train",))
    names = get_class_names(cfg)
    assert len(names) == 150
    assert names[6] == "road"
    assert names[8] == "window"
    assert names[65] == "toilet"
    check_class_names(names)
    assert tokenize_names(names, length=5).shape == (150, 5)  # as released


def test_a_synonym_that_two_classes_share_names_neither(catalogs):
    register_semantic_folder("kitchens", "", "", ["counter, bar", "counter, worktop", "sink, basin"])
    names = get_class_names(semantic_config("DATASETS.TRAIN", ("kitchens",)))
    assert names == ["counter, bar", "counter, worktop", "sink"]


def test_semantic_models_speak_of_all_classes_of_cityscapes_and_detectors_of_objects():
    opts = ("DATASETS.TRAIN", ("cityscapes_fine_sem_seg_train",))
    assert get_class_names(semantic_config(*opts))[:3] == ["road", "sidewalk", "building"]
    assert len(get_class_names(semantic_config(*opts))) == 19
    assert len(get_class_names(load_config("configs/Base-RetinaNet.yaml", list(opts)))) == 8


# Folders and Cityscapes


def test_a_folder_is_registered_from_the_config(folder):
    cfg = semantic_config(
        "DATASETS.SEMANTIC_FOLDERS", (str(folder),), "DATASETS.TRAIN", ("rooms_train",), num_classes=2
    )
    semantic_config("DATASETS.SEMANTIC_FOLDERS", (str(folder),))  # twice does no harm
    (record,) = load("rooms_train")
    assert get_class_names(cfg) == ["wall", "floor"]
    check_classes(cfg, cfg.DATASETS.TRAIN)
    assert (build_mapper(cfg)(record)["sem_seg"] == 1).all()


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
    """There are as many of both, which Detectron2's loader takes for a reason to pair them by position."""
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


# Augmentation


@pytest.mark.parametrize("size", [(683, 512), (512, 683), (3000, 300), (300, 3000), (256, 256)])
def test_images_are_scaled_as_the_recipe_scales_them(size):
    """MMSegmentation's rule: fit (2048, 512), times one factor, with the longer side to the longer."""
    augmentation = RandomScaleShortestEdge((512,), 2048, "choice", Image.BILINEAR, (0.5, 2.0))
    image = np.zeros((size[1], size[0], 3), np.uint8)
    factors = []
    for seed in range(100):
        with seeded_random(seed):
            transform = augmentation.get_transform(image)
        with seeded_random(seed):
            factor = np.random.uniform(0.5, 2.0)  # noqa: NPY002
        ratio = min(int(2048 * factor) / max(size), int(512 * factor) / min(size))
        assert abs(transform.new_w - size[0] * ratio) <= 0.51
        assert abs(transform.new_h - size[1] * ratio) <= 0.51
        factors.append(factor)
    assert min(factors) < 0.6
    assert max(factors) > 1.9


def painted(labels: np.ndarray) -> np.ndarray:
    """An image whose colours say the labels."""
    return np.stack([labels * 13, 255 - labels * 13, labels * 7], axis=2).astype(np.uint8)


def test_labels_stay_with_the_pixels_they_label(shapes, tmp_path):
    """Scaled, cropped, mirrored, padded: away from outlines, colours go on saying the labels."""
    image_file = tmp_path / "painted.png"
    mapper = build_mapper(semantic_config(*RECIPE, "INPUT.COLOR_AUG_SSD", False))
    mean = torch.tensor([123, 117, 104])
    for seed, record in enumerate(load("train") * 5):
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        Image.fromarray(painted(labels)).save(image_file)
        with seeded_random(seed):
            mapped = mapper({**record, "file_name": str(image_file)})
        image, labels = mapped["image"], mapped["sem_seg"]
        assert image.shape == (3, 128, 128)
        assert labels.shape == (128, 128)
        inner = torch.nn.functional.max_pool2d(labels[None].float(), 5, 1, 2)[0] == labels
        inner &= -torch.nn.functional.max_pool2d(-labels[None].float(), 5, 1, 2)[0] == labels
        inner[:3] = inner[-3:] = inner[:, :3] = inner[:, -3:] = False  # what was cropped may shine in
        expected = torch.from_numpy(painted(labels.numpy())).where((labels != 255)[..., None], mean)
        assert inner.float().mean() > 0.5
        # What is too thin for a label of its own still tinges the image, by a grey level or two.
        torch.testing.assert_close(
            image.permute(1, 2, 0)[inner].long(), expected[inner].long(), atol=2, rtol=0
        )
        assert (labels != 255).any()


def test_small_images_are_padded_to_the_crop_with_the_mean_and_ignored_there(shapes):
    opts = (
        *RECIPE,
        "INPUT.SCALE_RANGE_TRAIN",
        (0.5, 0.5),
        "INPUT.RANDOM_FLIP",
        "none",
        "INPUT.COLOR_AUG_SSD",
        False,
    )
    mapped = build_mapper(semantic_config(*opts))(load("train")[0])
    ignored = mapped["sem_seg"] == 255
    height, width = (int((~ignored).any(dim).sum()) for dim in (1, 0))
    assert min(height, width) == 64
    assert not ignored[:height, :width].any()
    assert (mapped["image"][:, ignored] == torch.tensor([[123], [117], [104]])).all()


def test_crops_have_less_than_the_given_part_of_one_class(shapes, tmp_path):
    labels = np.zeros((256, 256), np.uint8)
    labels[:, 64:] = np.arange(192) // 48 + 1
    labels[:, 160:] = 255  # what is ignored does not count
    labels[:128, :128] = 0
    record = {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "label.png")}
    Image.fromarray(painted(labels)).save(record["file_name"])
    Image.fromarray(labels).save(record["sem_seg_file_name"])
    fixed = ("INPUT.MIN_SIZE_TRAIN", (256,), "INPUT.SCALE_RANGE_TRAIN", (1.0, 1.0))

    def largest_parts(limit: float) -> list[float]:
        mapper = build_mapper(semantic_config(*RECIPE, *fixed, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", limit))
        parts = []
        for seed in range(60):
            with seeded_random(seed):
                mapped = mapper(record)["sem_seg"]
            counts = mapped[mapped != 255].unique(return_counts=True)[1]
            parts.append((counts.max() / counts.sum()).item())
        return parts

    assert max(largest_parts(0.75)) < 0.75
    assert max(largest_parts(1.0)) > 0.9


def test_colours_are_distorted_alike_in_either_order_and_labels_are_not(shapes):
    """The distortion goes through hue and saturation, for which the order of the channels matters."""
    record, opts = load("train")[0], ("INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", (96,))
    plain = build_mapper(semantic_config(*opts))(record)
    rgb, bgr = (
        build_mapper(semantic_config(*opts, "INPUT.COLOR_AUG_SSD", True, "INPUT.FORMAT", order))
        for order in ("RGB", "BGR")
    )
    changed = 0
    for seed in range(10):
        with seeded_random(seed):
            one = rgb(record)
        with seeded_random(seed):
            other = bgr(record)
        torch.testing.assert_close(one["image"], other["image"].flip(0))
        torch.testing.assert_close(one["sem_seg"], plain["sem_seg"])
        changed += not torch.equal(one["image"], plain["image"])
    assert changed > 5


def test_test_images_have_the_test_size_no_augmentation_and_no_labels(shapes):
    cfg = semantic_config(*RECIPE, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 2048)
    record = load("val")[0]
    mapped = build_mapper(cfg, is_train=False)(record)
    with Image.open(record["file_name"]) as image:
        assert (mapped["width"], mapped["height"]) == image.size
        resize = T.ResizeShortestEdge(64, 2048).get_transform(np.asarray(image))
        expected = resize.apply_image(np.asarray(image))
    np.testing.assert_array_equal(mapped["image"].permute(1, 2, 0), expected)
    assert "sem_seg" not in mapped


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
def test_unusable_labels_are_refused_before_training(shapes, fault):
    name = spoil_label(shapes, fault)
    with pytest.raises(ValueError, match=f"(?s){name}.* {fault}"):
        load("train")


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_unusable_labels_are_refused_when_read(shapes, fault, is_train):
    records = load("train")
    name = spoil_label(shapes, fault)
    with pytest.raises(ValueError, match=f"{name}.* {fault}"):
        build_mapper(semantic_config(), is_train)(records[2])


def test_a_palette_changes_no_label(shapes):
    """Detectron2's mapper would take its colours' brightness."""
    record = load("train")[0]
    mapper = build_mapper(semantic_config("INPUT.RANDOM_FLIP", "none"))
    plain = mapper(record)["sem_seg"]
    with Image.open(record["sem_seg_file_name"]) as image:
        coloured = image.convert("P")
        coloured.putdata(list(image.getdata()))
    coloured.putpalette(np.random.default_rng(0).integers(256, size=768).tolist())
    coloured.save(record["sem_seg_file_name"])
    load("train")
    torch.testing.assert_close(mapper(record)["sem_seg"], plain)


def test_ignored_labels_are_in_range(shapes):
    record = load("train")[0]
    with Image.open(record["sem_seg_file_name"]) as image:
        Image.new("L", image.size, 255).save(record["sem_seg_file_name"])
    load("train")
    assert (build_mapper(semantic_config(*RECIPE))(record)["sem_seg"] == 255).all()


def test_a_perfect_prediction_has_full_marks(shapes):
    evaluator = SemSegEvaluator("val", distributed=False, sem_seg_loading_fn=read_labels)
    evaluator.reset()
    for record in load("val"):
        labels = torch.from_numpy(np.asarray(Image.open(record["sem_seg_file_name"]))).long()
        scores = torch.nn.functional.one_hot(labels, 19).permute(2, 0, 1)
        evaluator.process([record], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


# What model and dataset must agree on


def test_another_number_of_classes_or_ignored_label_is_refused(shapes):
    with pytest.raises(ValueError, match=r"'train' has 19 classes, MODEL.SEM_SEG_HEAD.NUM_CLASSES is 18"):
        check_classes(semantic_config(num_classes=18), ["train"])
    with pytest.raises(ValueError, match=r"'train' ignores label 255, MODEL.SEM_SEG_HEAD.IGNORE_VALUE is 0"):
        check_classes(semantic_config("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0), ["train"])


def test_a_dataset_for_another_task_is_refused(shapes):
    with pytest.raises(ValueError, match="'train' has no thing_classes, which DenseCLIPRetinaNet needs"):
        check_classes(load_config("configs/Base-RetinaNet.yaml", []), ["train"])
    MetadataCatalog.get("boxes").thing_classes = ["dog"]
    with pytest.raises(ValueError, match="'boxes' has no stuff_classes, which SemanticSegmentor needs"):
        check_classes(semantic_config(), ["boxes"])


# Loading


def assert_same(some: list[list[dict]], others: list[list[dict]]) -> None:
    for one, other in zip(some, others, strict=True):
        assert [x["file_name"] for x in one] == [x["file_name"] for x in other]
        for x, y in zip(one, other, strict=True):
            torch.testing.assert_close((x["image"], x["sem_seg"]), (y["image"], y["sem_seg"]), rtol=0, atol=0)


def test_training_batches_are_of_one_size_and_go_on_where_they_stopped(shapes):
    cfg = semantic_config(
        *RECIPE,
        "DATASETS.TRAIN",
        ("train",),
        "SOLVER.IMS_PER_BATCH",
        3,
        "DATALOADER.NUM_WORKERS",
        0,
        "SEED",
        1,
    )
    loader = Trainer.build_train_loader(cfg)
    stream = iter(loader)
    taken = list(islice(stream, 2))
    state = loader.state_dict()
    rest = list(islice(stream, 3))
    assert {x["image"].shape for batch in taken + rest for x in batch} == {(3, 128, 128)}
    assert {x["sem_seg"].shape for batch in taken + rest for x in batch} == {(128, 128)}
    resumed = Trainer.build_train_loader(cfg)
    resumed.load_state_dict(state)
    assert_same(list(islice(resumed, 3)), rest)


def test_the_mapper_follows_the_architecture():
    assert isinstance(build_mapper(semantic_config()), SemanticMapper)
    detector = load_config("configs/Base-RetinaNet.yaml", list(RECIPE))
    augmentations = build_mapper(detector).augmentations.augs
    assert [type(a) for a in augmentations[:3]] == [T.RandomCrop, RandomScaleShortestEdge, T.RandomFlip]
    assert isinstance(augmentations[3].tfm, ColorAugSSDTransform)

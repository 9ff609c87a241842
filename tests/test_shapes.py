"""The generated dataset "shapes"."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import load_script
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

from denseclip_d2.data.checks import load_datasets
from denseclip_d2.shapes import dataset as shapes
from denseclip_d2.shapes.dataset import CLASS_NAMES, generate_shapes, register_shapes
from denseclip_d2.shapes.scene import TEXTURES
from denseclip_d2.shapes.vocabulary import SHAPES, SHAPES_192

NUM_TRAIN = 250
NUM_VAL = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Generate a dataset with every kind of image. Tests only read it."""
    path = tmp_path_factory.mktemp("data") / "shapes"
    generate_shapes(path, num_train=NUM_TRAIN, num_val=NUM_VAL)
    return path


@pytest.fixture(scope="module")
def coco(root) -> COCO:
    return COCO(str(root / "annotations" / "instances_train.json"))


@pytest.fixture
def prepare():
    return load_script("datasets/prepare_shapes.py").main


def read_files(root: Path) -> dict[str, bytes]:
    """Return the content of every file below ``root`` by relative path."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_class_names_are_color_texture_shape_in_a_fixed_order():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 18
    assert CLASS_NAMES[:4] == (
        "red solid circle",
        "red solid square",
        "red solid triangle",
        "red striped circle",
    )
    assert CLASS_NAMES[-1] == "blue striped triangle"


def test_categories_follow_the_class_names(coco):
    assert [coco.cats[i]["name"] for i in range(1, 19)] == list(CLASS_NAMES)
    assert len(coco.cats) == 18


def test_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        generate_shapes(tmp_path / name, num_train=8, num_val=2, seed=3)
    assert read_files(tmp_path / "a") == read_files(tmp_path / "b")


def test_another_seed_and_another_split_give_other_images(root, tmp_path):
    generate_shapes(tmp_path / "other", num_train=2, num_val=1, seed=1)
    name = "000000000001.png"
    first = (root / "train" / name).read_bytes()
    assert (tmp_path / "other" / "train" / name).read_bytes() != first
    assert (root / "val" / name).read_bytes() != first


def test_an_image_does_not_depend_on_the_number_of_images(root, coco, tmp_path):
    generate_shapes(tmp_path / "few", num_train=5, num_val=0)
    few = COCO(str(tmp_path / "few" / "annotations" / "instances_train.json"))
    for image_id, image in few.imgs.items():
        assert image == coco.imgs[image_id]
        assert few.imgToAnns[image_id] == coco.imgToAnns[image_id]
        path = Path("train") / image["file_name"]
        assert (tmp_path / "few" / path).read_bytes() == (root / path).read_bytes()


def test_image_sizes_vary_and_are_as_annotated(root, coco):
    sizes = {(image["height"], image["width"]) for image in coco.imgs.values()}
    assert len(sizes) > 10
    assert any(height != width for height, width in sizes)
    for image in coco.imgs.values():
        with Image.open(root / "train" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])
            assert opened.mode == "RGB"


def test_masks_agree_with_boxes_and_areas(coco):
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        y, x = np.nonzero(mask)
        left, top, width, height = annotation["bbox"]
        expected = [left, top, left + width, top + height]
        np.testing.assert_allclose([x.min(), y.min(), x.max() + 1, y.max() + 1], expected, atol=1.5)
        # Rasterizing moves the outline by a fraction of a pixel. The area changes by that of the perimeter.
        assert abs(mask.sum() - annotation["area"]) <= 0.5 * (width + height)


def test_objects_lie_within_their_images(coco):
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        left, top, width, height = annotation["bbox"]
        assert left >= 0
        assert top >= 0
        assert left + width <= image["width"]
        assert top + height <= image["height"]


def test_objects_show_their_color_and_texture(root, coco):
    """On the pixels that no other annotation covers. These are most pixels of an object."""
    for image_id, image in coco.imgs.items():
        pixels = np.asarray(Image.open(root / "train" / image["file_name"]), dtype=float)
        annotations = coco.imgToAnns[image_id]
        masks = [coco.annToMask(annotation).astype(bool) for annotation in annotations]
        layers = np.sum(masks, axis=0)
        for annotation, mask in zip(annotations, masks, strict=True):
            if annotation["iscrowd"]:
                continue
            own = mask & (layers == 1)
            assert own.sum() > 0.5 * mask.sum()
            color, texture, _ = CLASS_NAMES[annotation["category_id"] - 1].split()
            mean = pixels[own].mean(axis=0)
            dominant = ("red", "green", "blue").index(color)
            assert mean[dominant] > max(np.delete(mean, dominant)) + 20
            whitish = (pixels[own].min(axis=1) > 150).mean()
            assert (whitish > 0.15) == (texture == "striped")


def test_labels_agree_with_colors(root, coco):
    """Label images agree with the colors. Crowds and the background are labeled."""
    found = set()
    for image in coco.imgs.values():
        pixels = np.asarray(Image.open(root / "train" / image["file_name"]), dtype=float)
        label = np.asarray(Image.open(root / "labels" / "train" / image["file_name"]))
        assert label.shape == (image["height"], image["width"])
        for value in np.unique(label):
            mean = pixels[label == value].mean(axis=0)
            if value == len(CLASS_NAMES):
                assert np.ptp(mean) < 20  # gray
            else:
                color = ("red", "green", "blue").index(CLASS_NAMES[value].split()[0])
                assert mean[color] > max(np.delete(mean, color)) + 20
        found.update(np.unique(label).tolist())
    assert found == set(range(19))


def test_labels_are_those_of_the_topmost_objects(coco, root):
    for image_id, image in coco.imgs.items():
        label = np.asarray(Image.open(root / "labels" / "train" / image["file_name"]))
        hidden = np.zeros(label.shape, dtype=bool)
        for annotation in reversed(coco.imgToAnns[image_id]):
            mask = coco.annToMask(annotation).astype(bool)
            assert (label[mask & ~hidden] == annotation["category_id"] - 1).all()
            hidden |= mask
        assert (label[~hidden] == len(CLASS_NAMES)).all()


def test_fractions_of_empty_and_crowd_images(coco):
    """About 4 % and 6 %. 250 random images rarely exceed the bounds."""
    crowds = {annotation["image_id"] for annotation in coco.anns.values() if annotation["iscrowd"]}
    empty = [image_id for image_id in coco.imgs if not coco.imgToAnns[image_id]]
    assert 0.01 < len(empty) / NUM_TRAIN < 0.08
    assert 0.02 < len(crowds) / NUM_TRAIN < 0.11


def test_crowds_are_one_run_length_encoded_annotation(coco):
    crowds = [annotation for annotation in coco.anns.values() if annotation["iscrowd"]]
    assert len({annotation["image_id"] for annotation in crowds}) == len(crowds)
    for annotation in crowds:
        image = coco.imgs[annotation["image_id"]]
        encoding = annotation["segmentation"]
        assert encoding["size"] == [image["height"], image["width"]]
        assert sum(encoding["counts"]) == image["height"] * image["width"]
        assert coco.annToMask(annotation).sum() == annotation["area"]


def test_panoptic_segments_agree_with_labels(root, coco):
    panoptic = json.loads((root / "panoptic" / "panoptic_train.json").read_text())
    assert [c["name"] for c in panoptic["categories"] if not c["isthing"]] == ["background"]
    assert len(panoptic["annotations"]) == NUM_TRAIN
    for annotation in panoptic["annotations"]:
        ids = np.asarray(Image.open(root / "panoptic" / "train" / annotation["file_name"]))
        assert not ids[..., 1:].any()
        segments = {s["id"]: s for s in annotation["segments_info"]}
        assert set(np.unique(ids[..., 0])) == set(segments)
        classes = np.zeros(256, int)
        for i, segment in segments.items():
            classes[i] = segment["category_id"] - 1
            y, x = np.nonzero(ids[..., 0] == i)
            assert segment["area"] == len(x)
            assert segment["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        label = np.asarray(Image.open(root / "labels" / "train" / annotation["file_name"]))
        assert (classes[ids[..., 0]] == label).all()
        stuff = np.asarray(Image.open(root / "panoptic" / "stuff_train" / annotation["file_name"]))
        assert (stuff == (label == len(CLASS_NAMES))).all()
    crowds = sum(s["iscrowd"] for a in panoptic["annotations"] for s in a["segments_info"])
    assert crowds == sum(a["iscrowd"] for a in coco.anns.values()) > 0


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_annotation", interrupt)  # an image is already written then
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(tmp_path / "shapes", num_train=5, num_val=5)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_unchanged(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="delete it"):
        generate_shapes(tmp_path, num_train=1, num_val=1)
    assert read_files(tmp_path) == {"notes.txt": b"mine"}


def test_an_empty_folder_is_accepted(tmp_path):
    generate_shapes(tmp_path, num_train=1, num_val=1)
    # Two images, two label images, annotations of two splits; panoptic masks, stuff masks and files.
    assert len(read_files(tmp_path)) == 6 + 6


def test_negative_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_train=-1"):
        generate_shapes(tmp_path / "shapes", num_train=-1)


def test_registered_dataset_loads_in_detectron2(root, monkeypatch):
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})  # the package registers the same names
    register_shapes(root)
    assert len(DatasetCatalog.get("shapes_val")) == NUM_VAL
    metadata = MetadataCatalog.get("shapes_val")
    assert metadata.thing_classes == list(CLASS_NAMES)
    assert "prepare_shapes.py" in metadata.how_to_get
    assert len(DatasetCatalog.get("shapes_sem_seg_val")) == NUM_VAL
    metadata = MetadataCatalog.get("shapes_sem_seg_val")
    assert metadata.stuff_classes == [*CLASS_NAMES, "background"]
    assert metadata.evaluator_type == "sem_seg"
    for record in DatasetCatalog.get("shapes_panoptic_val"):
        assert record["segments_info"][-1] == {
            **record["segments_info"][-1], "category_id": 18, "isthing": False,
        }  # fmt: skip
    for record in DatasetCatalog.get("shapes_panoptic_val_separated"):
        assert {"annotations", "sem_seg_file_name"} <= set(record)
    shutil.move(root / "panoptic", root / "away")
    try:
        with pytest.raises(FileNotFoundError, match="no annotation file .*panoptic_val.json. Run `py"):
            load_datasets(["shapes_panoptic_val_separated"], filter_empty=False, check_images=True)
    finally:
        shutil.move(root / "away", root / "panoptic")


def test_script_prepares_once_and_refuses_to_overwrite(prepare, tmp_path, capsys):
    arguments = ["--root", str(tmp_path / "shapes"), "--num-train", "2", "--num-val", "1"]
    prepare(arguments)
    assert str(tmp_path / "shapes") in capsys.readouterr().out
    written = read_files(tmp_path)

    prepare(arguments)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="another --root"):
        prepare([*arguments, "--seed", "1"])
    assert read_files(tmp_path) == written

    shutil.rmtree(tmp_path / "shapes" / "labels")
    shutil.rmtree(tmp_path / "shapes" / "panoptic")
    prepare(arguments)
    assert "added label images" in capsys.readouterr().out
    assert read_files(tmp_path) == written


def test_shapes_192_has_the_classes_of_shapes():
    names = SHAPES_192.class_names
    assert len(set(names)) == len(names) == 8 * 4 * 6
    assert set(SHAPES.class_names) < set(names)
    assert names[-1] == "black dotted bar"


def test_classes_of_shapes_192_are_long_tailed():
    frequencies = np.sort(SHAPES_192.frequencies)
    assert frequencies.sum() == pytest.approx(1)
    assert 30 < frequencies[-1] / frequencies[0] < 50
    rng = np.random.default_rng(0)
    drawn = np.bincount([SHAPES_192.sample_class(rng) for _ in range(20000)], minlength=192) / 20000
    assert np.abs(drawn - SHAPES_192.frequencies).max() < 0.005
    assert set(SHAPES.frequencies) == {1 / 18}


@pytest.mark.parametrize("texture", ["striped", "checked", "dotted"])
def test_textures_have_two_colors_and_differ(texture):
    across, along = np.mgrid[0:16:0.1, 0:16:0.1]
    second = TEXTURES[texture](across, along)
    assert set(np.unique(second)) == {0, 1}
    assert 0.25 < second.mean() < 0.6
    assert (TEXTURES["striped"](across, along) != second).any() == (texture != "striped")
    assert (second == second[:, :1]).all() == (texture == "striped")


def test_shapes_192_has_the_same_files_and_its_own_classes(prepare, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    prepare(["--vocabulary", "shapes192", "--num-train", "40", "--num-val", "2"])
    root = tmp_path / "shapes192"
    coco = COCO(str(root / "annotations" / "instances_train.json"))
    assert [category["name"] for category in coco.cats.values()] == list(SHAPES_192.class_names)
    seen = {annotation["category_id"] for annotation in coco.anns.values()}
    assert max(seen) > 18
    for path in (root / "labels" / "train").glob("*.png"):
        labels = np.asarray(Image.open(path))
        assert (labels == 192).any()
        assert set(np.unique(labels)) <= {192, *(c - 1 for c in seen)}
    name = "shapes192_sem_seg_val"
    assert MetadataCatalog.get(name).stuff_classes == list(SHAPES_192.semantic_class_names)
    assert "--vocabulary shapes192" in MetadataCatalog.get(name).how_to_get


def test_unseen_classes_have_no_annotation_and_are_ignored_in_labels(prepare, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    held_out = SHAPES_192.held_out
    assert len(held_out) == 24
    for words in (SHAPES_192.colors, SHAPES_192.textures, SHAPES_192.outlines):
        assert all(any(word in name.split() for name in SHAPES_192.seen_class_names) for word in words)
    assert SHAPES.held_out == ()
    arguments = ["--vocabulary", "shapes192", "--num-train", "40", "--num-val", "2"]
    prepare(arguments)
    root = tmp_path / "shapes192"
    whole, seen = (
        COCO(str(folder / "annotations" / "instances_train.json")) for folder in (root, root / "seen")
    )
    names = {i: category["name"] for i, category in seen.cats.items()}
    assert tuple(names.values()) == SHAPES_192.seen_class_names
    assert 0 < len(seen.anns) < len(whole.anns)
    for i, annotation in whole.anns.items():
        name = whole.cats[annotation["category_id"]]["name"]
        assert (name in held_out) == (i not in seen.anns)
        if i in seen.anns:
            assert names[seen.anns[i]["category_id"]] == name
            assert seen.anns[i]["bbox"] == annotation["bbox"]
    everything = (*SHAPES_192.class_names, "background")
    found = set()
    for path in sorted((root / "labels" / "train").glob("*.png")):
        old = np.asarray(Image.open(path))
        new = np.asarray(Image.open(root / "seen" / "labels" / "train" / path.name))
        for label in np.unique(old):
            (changed,) = np.unique(new[old == label])
            name = everything[label]
            assert changed == 255 if name in held_out else (*names.values(), "background")[changed] == name
            found.add(name in held_out)
    assert found == {True, False}
    shutil.rmtree(root / "seen")
    prepare(arguments)
    assert "added label images" in capsys.readouterr().out
    assert (root / "seen" / "annotations" / "instances_val.json").is_file()

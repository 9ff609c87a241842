"""YOLO and Pascal VOC folders, read like a COCO file of the same data."""

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.structures import BoxMode
from PIL import Image

from denseclip_d2.cli import train_net
from denseclip_d2.cli.parser import parse_args
from denseclip_d2.data.dataset_folder import read_source
from denseclip_d2.data.voc import read_voc
from denseclip_d2.data.yolo import read_yolo

ROOT = Path(__file__).parents[1]
SIZE = (200, 100)
BOX = "0 0.5 0.5 0.2 0.4\n"  # in an image of SIZE: x 80, y 30, width 40, height 40
PIXELS = [80, 30, 40, 40]
NAMES = "names: [cat, garden gnome]\n"


def write_image(path: Path, size: tuple[int, int] = SIZE, orientation: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)


def write(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def write_yolo(root: Path, yaml: str = "train: images/train\n" + NAMES, **images: str | bytes | None) -> Path:
    """Write data.yaml and images of SIZE. ``images`` maps names to label files; None writes no label file."""
    write(root / "data.yaml", yaml)
    for name, labels in images.items():
        write_image(root / "images/train" / f"{name}.png")
        if labels is not None:
            write(root / "labels/train" / f"{name}.txt", labels)
    return root


def annotations_of(source, file_name: str) -> list[dict]:
    ids = [image["id"] for image in source.content["images"] if image["file_name"] == file_name]
    assert len(ids) == 1, [image["file_name"] for image in source.content["images"]]
    return [a for a in source.content["annotations"] if a["image_id"] == ids[0]]


def boxes_of(source, file_name: str) -> list[list[float]]:
    return [annotation["bbox"] for annotation in annotations_of(source, file_name)]


def assert_close(actual, expected) -> None:
    torch.testing.assert_close(
        torch.tensor(actual), torch.tensor(expected), atol=1e-6, rtol=0, check_dtype=False
    )


# YOLO: the lines of a label file


def test_yolo_boxes_become_cocos_and_images_without_objects_stay(tmp_path):
    """Ultralytics' convention: class, center x, center y, width, height, as fractions."""
    labels = BOX + "1 0.25 0.75 0.1 0.5\n"
    source = read_yolo(write_yolo(tmp_path, a=labels, empty="", unlabeled=None))["train"]
    assert source.content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "garden gnome"}]
    assert source.content["images"] == [
        {"id": i, "file_name": f"images/train/{name}.png", "width": 200, "height": 100}
        for i, name in enumerate(("a", "empty", "unlabeled"), 1)
    ]
    first, second = source.content["annotations"]
    assert (first["id"], first["image_id"], first["category_id"], first["iscrowd"]) == (1, 1, 1, 0)
    assert (second["id"], second["image_id"], second["category_id"]) == (2, 1, 2)
    assert_close([first["bbox"], second["bbox"]], [PIXELS, [40, 50, 20, 50]])
    assert_close([first["area"], second["area"]], [1600, 1000])
    assert "segmentation" not in first
    assert source.image_root == tmp_path and "data.yaml (YOLO, train)" in source.description


def test_yolo_polygons_and_turned_boxes_keep_their_outline(tmp_path):
    triangle, turned = "1 0.1 0.1 0.2 0.1 0.1 0.5\n", "0 0.5 0.2 0.6 0.5 0.5 0.8 0.4 0.5\n"
    source = read_yolo(write_yolo(tmp_path, a=triangle + BOX + turned))["train"]
    of_triangle, of_box, of_turned = source.content["annotations"]
    assert_close(of_triangle["segmentation"], [[20, 10, 40, 10, 20, 50]])
    assert_close(of_turned["segmentation"], [[100, 20, 120, 50, 100, 80, 80, 50]])
    assert "segmentation" not in of_box
    assert_close(
        [a["bbox"] for a in source.content["annotations"]], [[20, 10, 20, 40], PIXELS, [80, 20, 40, 60]]
    )
    assert_close([a["area"] for a in source.content["annotations"]], [400, 1600, 1200])


def test_a_yolo_polygon_may_begin_the_file_or_end_it(tmp_path):
    triangle = "1 0.1 0.1 0.2 0.1 0.1 0.5\n"
    source = read_yolo(write_yolo(tmp_path, a=triangle + BOX, b=BOX + triangle))["train"]
    assert [a["category_id"] for a in source.content["annotations"]] == [2, 1, 1, 2]


@pytest.mark.parametrize(
    "labels",
    [
        b"\xef\xbb\xbf0 0.5 0.5 0.2 0.4\r\n\r\n",
        b"  0 0.5  0.5\t0.2 0.4   \n\n",
        b"0.0 5e-1 5.0E-01 0.2 0.4",
    ],
    ids=["byte order mark and CRLF", "spaces", "as numpy.savetxt writes"],
)
def test_yolo_labels_as_editors_write_them(tmp_path, labels):
    source = read_yolo(write_yolo(tmp_path, a=labels))["train"]
    assert_close(boxes_of(source, "images/train/a.png"), [PIXELS])


def test_yolo_boxes_slightly_outside_are_clipped_and_doubled_lines_count_once(tmp_path, caplog):
    labels = "0 0.5 0.5 1.0001 0.4\n0 0.95 0.5 0.2 0.4\n" + BOX + BOX
    source = read_yolo(write_yolo(tmp_path, a=labels))["train"]
    expected = [[0, 30, 200, 40], [170, 30, 30, 40], PIXELS]
    assert_close(boxes_of(source, "images/train/a.png"), expected)
    assert "1 lines repeat a line of their file" in caplog.text


def test_yolo_boxes_without_area_are_left_out_of_training_and_evaluation(tmp_path, caplog):
    labels = "0 0.5 0.5 0 0.4\n0 1.005 0.5 0.005 0.4\n" + BOX
    source = read_yolo(write_yolo(tmp_path, a=labels, b="0 0.5 0.5 0.2 0"))["train"]
    assert_close(boxes_of(source, "images/train/a.png"), [PIXELS])
    assert not boxes_of(source, "images/train/b.png")
    assert "3 boxes have no area: left out. " in caplog.text and "b.png" in caplog.text


@pytest.mark.parametrize(("dimensions", "visible"), [(3, " 2"), (2, "")])
def test_yolo_keypoints_are_left_out(tmp_path, dimensions, visible):
    line = BOX.strip() + f" 0.1 0.2{visible} 0.3 0.4{visible}\n"
    yaml = f"train: images/train\nkpt_shape: [2, {dimensions}]\n" + NAMES
    source = read_yolo(write_yolo(tmp_path, yaml, a=line + "1 0.25 0.75 0.1 0.5\n"))["train"]
    assert_close(boxes_of(source, "images/train/a.png"), [PIXELS, [40, 50, 20, 50]])
    write(tmp_path / "labels/train/a.txt", BOX.strip() + " 0.1 0.2 0.3\n")
    with pytest.raises(ValueError, match=rf"a.txt:1: 7 numbers .* keypoints {4 + 2 * dimensions}\."):
        read_yolo(tmp_path)


def test_sizes_are_those_of_images_as_they_are_read(tmp_path):
    """A photo that a camera rotated: 200 x 100 pixels in the file, 100 x 200 as Detectron2 reads it."""
    write_yolo(tmp_path)
    write_image(tmp_path / "images/train/turned.jpg", orientation=6)
    write(tmp_path / "labels/train/turned.txt", BOX)
    source = read_yolo(tmp_path)["train"]
    assert (source.content["images"][0]["width"], source.content["images"][0]["height"]) == (100, 200)
    assert_close(boxes_of(source, "images/train/turned.jpg"), [[40, 60, 20, 80]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.2 0.4", r"class 2 is not one of the 2 names, 0 to 1"),
        ("-1 0.5 0.5 0.2 0.4", r"class -1 is not one"),
        ("0.5 0.5 0.5 0.2 0.4", r"class 0.5 is not one"),
        ("0 100 50 40 40", r"100 is not a fraction of the image's size, 0 to 1, and looks like pixels"),
        ("0 0.5 0.5 0.2 nan", r"nan is not a fraction"),
        ("0 0.5 0.5 -0.2 0.4", r"-0.2 is not a fraction of the image's size, 0 to 1\."),
        ("0 0.5 0.5 0.2 -0.001", r"-0.001 is not a width or height"),
        ("0 0.5 0.5 0.2", r"3 numbers follow the class. A box has 4, a polygon 6, 8, \.\.\."),
        ("0 0.5 0.5 0.2 0.4 0.9", r"5 numbers follow the class"),
        ("0 0.1 0.1 0.2 0.1 0.1 0.5 0.9", r"7 numbers follow the class"),
        ("0 0,5 0,5 0,2 0,4", r"'0 0,5 0,5 0,2 0,4' is not a row of numbers with spaces"),
        ("0, 0.5, 0.5, 0.2, 0.4", r"is not a row of numbers with spaces"),
        ("cat 0.5 0.5 0.2 0.4", r"is not a row of numbers"),
    ],
)
def test_a_wrong_line_of_a_yolo_label_is_named(tmp_path, line, message):
    write_yolo(tmp_path, a=BOX, b=BOX + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"labels/train/b\.txt:3: .*{message}") as error:
        read_yolo(tmp_path)
    assert "\n" not in str(error.value)


# YOLO: the folders


@pytest.mark.parametrize(
    ("yaml", "images"),
    [
        ("train: images/train\nval: images/val\ntest: images/test\n", "images/{}"),
        ("path: data\ntrain: images/train\nval: ./images/val\ntest: images/test/\n", "data/images/{}"),
        ("train: ../train/images\nval: ../valid/images\ntest: ../test/images\n", "{}/images"),
        ("train: train/images\nvalid: valid/images\ntest: test/images\n", "{}/images"),
        ("train: train\nvalidation: valid\ntest: test\n", "{}/images"),
        ("Train: images/train\nValidation: images/val\nTest: images/test\n", "images/{}"),
        ("train: [images/train]\nval: [images/val]\ntest: [images/test]\n", "images/{}"),
        ("train: /elsewhere/images/train\nval: C:\\my\\images\\val\ntest: old/images/test\n", "images/{}"),
        ("path: /elsewhere\ntrain: images/train\nval: images/val\ntest: images/test\n", "images/{}"),
    ],
    ids=[
        "beside",
        "path",
        "Roboflow",
        "valid",
        "above images",
        "CVAT",
        "lists",
        "another machine",
        "another path",
    ],
)
def test_yolo_layouts(tmp_path, yaml, images):
    """Layouts of Ultralytics and Roboflow, and paths from another machine."""
    valid = "valid" if images.startswith("{}") else "val"
    root = tmp_path / "my"
    for i, split in enumerate(("train", valid, "test"), 1):
        for n in range(i):
            write_image(root / images.format(split) / f"{n}.png")
            write(root / images.replace("images", "labels").format(split) / f"{n}.txt", BOX)
    write(root / "any name.yaml", yaml + NAMES)
    for path in (root, root / "any name.yaml"):
        sources = read_yolo(path)
        assert [len(source.content["images"]) for source in sources.values()] == [1, 2, 3]
        assert [*sources] == ["train", "val", "test"]
        for source in sources.values():
            for image in source.content["images"]:
                assert (source.image_root / image["file_name"]).is_file()
                assert_close(boxes_of(source, image["file_name"]), [PIXELS])


def test_yolo_path_may_begin_at_the_working_directory(tmp_path, monkeypatch):
    write_yolo(tmp_path / "data/my", a=BOX)
    write(tmp_path / "configs/my.yaml", "path: data/my\ntrain: images/train\n" + NAMES)
    monkeypatch.chdir(tmp_path)
    source = read_yolo("configs/my.yaml")["train"]
    assert source.image_root == tmp_path / "data/my"
    assert_close(boxes_of(source, "images/train/a.png"), [PIXELS])


def test_yolo_lists_of_images(tmp_path):
    """CVAT and Datumaro write lists. The images may be outside the folder of their split."""
    for name in "abc":
        write_image(tmp_path / f"images/{name}.png")
        write(tmp_path / f"labels/{name}.txt", BOX)
    write(tmp_path / "train.txt", "./images/a.png\r\n\r\ndata/images/b.png\nimages/a.png\n")
    write(tmp_path / "val.txt", f"{tmp_path}/images/c.png\n")
    write(tmp_path / "data.yaml", "train: elsewhere/train.txt\nval: val.txt\n" + NAMES)
    sources = read_yolo(tmp_path)
    assert [i["file_name"] for i in sources["train"].content["images"]] == ["images/a.png", "images/b.png"]
    assert_close(boxes_of(sources["val"], "images/c.png"), [PIXELS])
    write(tmp_path / "train.txt", "images/a.png\nimages/d.png\n")
    with pytest.raises(FileNotFoundError, match=r"train.txt:2: there is no image images/d.png\."):
        read_yolo(tmp_path)


def test_yolo_images_in_folders_of_folders_and_behind_links(tmp_path):
    write_yolo(tmp_path / "my")
    write_image(tmp_path / "my/images/train/monday/a.JPG")
    write(tmp_path / "my/labels/train/monday/a.txt", BOX)
    write_image(tmp_path / "disk/b.c.png")
    (tmp_path / "my/images/train/tuesday").symlink_to(tmp_path / "disk")
    write(tmp_path / "my/labels/train/tuesday/b.c.txt", BOX)
    write(tmp_path / "my/images/train/monday/._a.JPG", b"of macOS")
    source = read_yolo(tmp_path / "my")["train"]
    assert len(source.content["images"]) == 2
    assert_close(boxes_of(source, "images/train/monday/a.JPG"), [PIXELS])
    assert_close(boxes_of(source, "images/train/tuesday/b.c.png"), [PIXELS])


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    write_yolo(tmp_path, a=BOX)
    (tmp_path / "images/train/here").symlink_to(tmp_path / "images/train")
    (tmp_path / "images/train/above").symlink_to("../../images")
    (tmp_path / "there").mkdir()
    (tmp_path / "there/back").symlink_to("../images/train")
    (tmp_path / "images/train/there").symlink_to("../../there")
    source = read_yolo(tmp_path)["train"]
    assert [image["file_name"] for image in source.content["images"]] == ["images/train/a.png"]


def test_macos_hidden_files_are_no_data_yaml(tmp_path):
    write_yolo(tmp_path, a=BOX)
    (tmp_path / "data.yaml").rename(tmp_path / "shapes.yaml")
    write(tmp_path / "._shapes.yaml", b"\0\5\x16\7\xff")
    assert [*read_source([str(tmp_path)])] == ["train"]


def test_a_folder_of_images_above_is_not_the_datasets(tmp_path):
    """Ultralytics replaces the last "images" in the path by "labels". Otherwise labels are beside images."""
    root = tmp_path / "images" / "my"
    write_yolo(root, a=BOX)
    assert_close(boxes_of(read_yolo(root)["train"], "images/train/a.png"), [PIXELS])
    flat = tmp_path / "images" / "flat"
    write_image(flat / "train/a.png")
    write(flat / "train/a.txt", BOX)
    write(flat / "data.yaml", "train: train\n" + NAMES)
    assert_close(boxes_of(read_yolo(flat)["train"], "train/a.png"), [PIXELS])


@pytest.mark.parametrize(
    ("file", "text", "images"),
    [
        ("classes.txt", "cat\r\ngarden gnome\r\n", "images"),
        ("classes.txt", "cat\ngarden gnome\n", "."),
        ("data.yaml", NAMES, "images"),
    ],
    ids=["Label Studio", "labelImg", "supervision"],
)
def test_a_yolo_folder_without_splits_is_for_training(tmp_path, file, text, images):
    write(tmp_path / file, text)
    write_image(tmp_path / images / "a.png")
    write(tmp_path / images.replace("images", "labels") / "a.txt", "1 0.5 0.5 0.2 0.4\n")
    source = read_source([str(tmp_path)])["train"]
    assert [c["name"] for c in source.content["categories"]] == ["cat", "garden gnome"]
    (annotation,) = source.content["annotations"]
    assert annotation["category_id"] == 2
    assert_close(annotation["bbox"], PIXELS)


def test_darknets_folder_of_yolo(tmp_path):
    """CVAT and Datumaro write YOLO 1.1. Paths start with a folder "data" that the archive does not have."""
    splits = "train = data/train.txt\nvalid = data/val.txt\n"
    write(tmp_path / "obj.data", f"classes = 2\n{splits}names = data/obj.names\nbackup = backup/\n")
    write(tmp_path / "obj.names", "cat\ngarden gnome\n")
    for split in ("train", "val"):
        write(tmp_path / f"{split}.txt", f"data/obj_{split}_data/a b.png\n")
        write_image(tmp_path / f"obj_{split}_data/a b.png")
        write(tmp_path / f"obj_{split}_data/a b.txt", BOX)
    for path in (tmp_path, tmp_path / "obj.data"):
        sources = read_source([str(path)])
        for split, source in sources.items():
            assert [c["name"] for c in source.content["categories"]] == ["cat", "garden gnome"]
            assert_close(boxes_of(source, f"obj_{split}_data/a b.png"), [PIXELS])
        assert [*sources] == ["train", "val"]
    (tmp_path / "obj.names").unlink()
    with pytest.raises(ValueError, match="obj.data needs names"):
        read_yolo(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        "names: [cat, garden gnome]\nnc: 2\n",
        "names: [cat, garden gnome]\nnc: '2'\n",
        "names:\n  1: garden gnome\n  0: cat\n",
        "names: {'0': cat, '1': garden gnome}\n",
        "names:\n- cat\n- garden gnome\n",
    ],
)
def test_yolo_names(tmp_path, names):
    source = read_yolo(write_yolo(tmp_path, "train: images/train\n" + names, a=BOX))["train"]
    assert [c["name"] for c in source.content["categories"]] == ["cat", "garden gnome"]


def test_more_than_ten_yolo_names_stay_in_the_order_of_their_numbers(tmp_path):
    names = {str(i): f"class {i}" for i in sorted(range(12), key=str)}
    source = read_yolo(write_yolo(tmp_path, f"train: images/train\nnames: {names}\n", a=BOX))["train"]
    assert [c["name"] for c in source.content["categories"]] == [f"class {i}" for i in range(12)]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [cat]\nval: images/train\n", r"data.yaml names no images to train on. Add .* train: images"),
        ("nc: 1\nnames: [cat]\nbackbone: []\n", r"data.yaml names no images to train on"),
        ("train: images/train\n", r"data.yaml needs names"),
        ("train: images/train\nnames: cat\n", r"data.yaml needs names"),
        ("train: images/train\nnames: []\n", r"data.yaml needs names"),
        ("train: images/train\nnames: [cat, no]\n", r"reads the name of class 1 as False. Put .* in quotes"),
        ("train: images/train\nnames: {0: cat, 2: dog}\n", r"names has the keys 0, 2"),
        ("train: images/train\nnames: [cat]\nnc: 80\n", r"nc is 80, and there are 1 names"),
        ("train: images/train\nnames: [cat]\nkpt_shape: 17\n", r"kpt_shape is 17"),
        ("train: images/train\nnames: [cat\n", r"data.yaml is not YAML: .*line"),
        ("- cat\n", r"data.yaml is not a data.yaml"),
        ("train: images/nowhere\nnames: [cat]\n", r"data.yaml: train: images/nowhere is not in "),
        ("train: nowhere/images\nnames: [cat]\n", r"data.yaml: train: nowhere/images is not in "),
        ("train: images/train\nval: images/val\nnames: [cat]\n", r"data.yaml: val: images/val is not in "),
        ("train: images/none\nnames: [cat]\n", r"data.yaml: train: .*images/none holds no images"),
        ("train: images/train/a.png\nnames: [cat]\n", r"a.png is neither a folder of images nor"),
        ("train: images/bare\nnames: [cat]\n", r"none of the 1 images has .*bare/a.png .*labels/bare/a.txt"),
        (b"train: images/train\nnames: [caf\xe9]\n", r"data.yaml, line 2: byte 0xe9 is not UTF-8"),
    ],
)
def test_a_wrong_data_yaml_is_named(tmp_path, yaml, message):
    write_yolo(tmp_path, yaml, a=BOX)
    write_image(tmp_path / "images/bare/a.png")
    (tmp_path / "images/none").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read_source([str(tmp_path / "data.yaml")])
    assert "\n" not in str(error.value)


def test_a_yolo_test_split_that_is_not_there_is_left_out(tmp_path):
    """Roboflow names a test split even if it does not exist."""
    yaml = "train: images/train\ntest: ../test/images\n" + NAMES
    assert [*read_yolo(write_yolo(tmp_path, yaml, a=BOX))] == ["train"]


def test_broken_images_and_labels_without_image_are_named(tmp_path, caplog):
    write_yolo(tmp_path, a=BOX)
    write(tmp_path / "labels/train/photo.txt", BOX)
    write(tmp_path / "images/train/photo.heic", b"of a kind that is not read")
    write(tmp_path / "labels/train/classes.txt", "cat")
    read_yolo(tmp_path)
    assert "1 label files have no image: left out. " in caplog.text and "photo.txt" in caplog.text
    write(tmp_path / "images/train/b.png", b"no image")
    with pytest.raises(ValueError, match=r"b.png is not an image that Pillow reads here\. Fetch them again"):
        read_yolo(tmp_path)


def test_detectron2_reads_the_content_as_a_coco_file(tmp_path, catalogs):
    source = read_yolo(write_yolo(tmp_path, a=BOX + "1 0.1 0.1 0.2 0.1 0.1 0.5\n", empty=None))["train"]
    (tmp_path / "train.json").write_text(json.dumps(source.content))
    labeled, empty = load_coco_json(str(tmp_path / "train.json"), str(source.image_root), "my_yolo_train")
    assert MetadataCatalog.get("my_yolo_train").thing_classes == ["cat", "garden gnome"]
    assert labeled["file_name"] == str(tmp_path / "images/train/a.png")
    assert [annotation["category_id"] for annotation in labeled["annotations"]] == [0, 1]
    assert_close(labeled["annotations"][1]["segmentation"], [[20, 10, 40, 10, 20, 50]])
    assert (empty["width"], empty["height"], empty["annotations"]) == (200, 100, [])


# Pascal VOC


def voc_xml(
    *objects: str, size: str | None = "<width>200</width><height>100</height>", name: str = ""
) -> str:
    has_size = f"<size>{size}<depth>3</depth></size>" if size else ""
    return f"<annotation><filename>{name}</filename>{has_size}{''.join(objects)}</annotation>"


def voc_object(name: str, *corners: float | str, more: str = "") -> str:
    box = "".join(f"<{k}>{x}</{k}>" for k, x in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def write_voc(root: Path, **annotations: str | None) -> Path:
    for name, xml in annotations.items():
        write_image(root / f"JPEGImages/{name}.jpg")
        if xml is not None:
            write(root / f"Annotations/{name}.xml", xml)
    return root


DOG, CAT = voc_object("dog", 11, 21, 50, 80), voc_object("cat", 1, 1, 200, 100)
DOG_PIXELS, CAT_PIXELS = [10, 20, 40, 60], [0, 0, 200, 100]


def test_voc_boxes_are_those_of_detectron2(tmp_path):
    write_voc(tmp_path, a=voc_xml(DOG, CAT), b=voc_xml(CAT), empty=voc_xml(), unlabeled=None)
    write(tmp_path / "ImageSets/Main/train.txt", "a\nb\nempty\n")
    source = read_voc(tmp_path)["train"]
    assert source.content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert_close(boxes_of(source, "JPEGImages/a.jpg"), [DOG_PIXELS, CAT_PIXELS])
    for record in load_voc_instances(str(tmp_path), "train", ["cat", "dog"]):
        found = annotations_of(source, str(Path(record["file_name"]).relative_to(tmp_path)))
        expected = [
            BoxMode.convert(a["bbox"], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS) for a in record["annotations"]
        ]
        assert [a["bbox"] for a in found] == expected
        assert [a["category_id"] - 1 for a in found] == [a["category_id"] for a in record["annotations"]]
    assert [i["file_name"] for i in source.content["images"]] == [
        f"JPEGImages/{n}.jpg" for n in ("a", "b", "empty")
    ]


def test_voc_lists_are_the_splits(tmp_path):
    write_voc(tmp_path, **{name: voc_xml(DOG) for name in ("a", "b", "c", "d e")}, unlabeled=None)
    everything = read_voc(tmp_path)
    assert [*everything] == ["train"] and len(everything["train"].content["images"]) == 5
    lists = tmp_path / "ImageSets/Main"
    write(lists / "trainval.txt", 'a\nb\nunlabeled\n\n"d e"\n')
    write(lists / "test.txt", "c\r\n")
    write(lists / "dog_trainval.txt", "a  1\nb -1\n")

    def stems(split: str) -> list[str]:
        return [Path(image["file_name"]).stem for image in read_voc(tmp_path)[split].content["images"]]

    assert (stems("train"), stems("test")) == (["a", "b", "unlabeled", "d e"], ["c"])
    assert "val" not in read_voc(tmp_path)
    write(lists / "train.txt", "a.jpg\n")
    write(lists / "val.txt", "b\n")
    assert (stems("train"), stems("val"), stems("test")) == (["a"], ["b"], ["c"])
    (lists / "train.txt").unlink()
    assert stems("train") == ["a", "unlabeled", "d e"]  # no evaluation data
    (lists / "trainval.txt").unlink()
    assert stems("train") == ["a", "d e", "unlabeled"]
    (lists / "val.txt").rename(lists / "Validation.txt")
    assert stems("train") == ["a", "d e", "unlabeled"] and stems("val") == ["b"]  # as in CVAT's files
    write(lists / "val.txt", "b\nnowhere\n")
    with pytest.raises(FileNotFoundError, match=r"val.txt:2: there is no image nowhere\."):
        read_voc(tmp_path)


def test_voc_classes_of_a_label_map_keep_its_order(tmp_path):
    write_voc(tmp_path, a=voc_xml(DOG, CAT))
    header = "# label:color_rgb:parts:actions\n"
    write(tmp_path / "labelmap.txt", header + "background:0,0,0::\ndog:::\nzebra:1,2,3::\ncat:::\n")
    source = read_voc(tmp_path)["train"]
    assert [c["name"] for c in source.content["categories"]] == ["dog", "zebra", "cat"]
    assert [a["category_id"] for a in source.content["annotations"]] == [1, 3]
    write(tmp_path / "labelmap.txt", "dog:::\n")
    with pytest.raises(ValueError, match=r"a.xml has an object 'cat', which is not in .*labelmap.txt"):
        read_voc(tmp_path)


def test_voc_classes_are_the_same_in_all_splits(tmp_path):
    write_voc(tmp_path, a=voc_xml(DOG), b=voc_xml(CAT))
    for split, name in (("train", "a"), ("val", "b")):
        write(tmp_path / f"ImageSets/Main/{split}.txt", name)
    sources = read_voc(tmp_path)
    assert [c["name"] for c in sources["train"].content["categories"]] == ["cat", "dog"]
    assert sources["val"].content["annotations"][0]["category_id"] == 1


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (voc_object("cat", 0, 5, 20, 30), [11, 21, 39, 59]),
        (voc_object("cat", 10.5, 5.25, 20, 30), DOG_PIXELS),
        (voc_object("cat", 10.5, 5.25, 20, 30) * 2, [11, 21, 39, 59]),
    ],
    ids=["a zero", "some fractions", "most fractions"],
)
def test_voc_coordinates_that_count_from_zero_are_taken_as_they_stand(tmp_path, other, expected):
    """VOC counts pixels from 1 and rarely has fractions. CVAT and Datumaro write coordinates."""
    write_voc(tmp_path, a=voc_xml(DOG), b=voc_xml(other))
    assert_close(boxes_of(read_voc(tmp_path)["train"], "JPEGImages/a.jpg"), [expected])


@pytest.mark.parametrize("difficult", [0, 1, ""])
def test_difficult_voc_objects_are_objects_as_others(tmp_path, difficult, caplog):
    more = f"<difficult>{difficult}</difficult><pose>Left</pose><truncated>1</truncated>"
    dog = voc_object("dog", 11, 21, 50, 80, more=more)
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    with caplog.at_level(logging.INFO):
        source = read_voc(write_voc(tmp_path, a=voc_xml(dog.replace("</object>", f"{part}</object>"))))
    (annotation,) = source["train"].content["annotations"]
    assert (annotation["bbox"], annotation["iscrowd"], annotation["area"]) == (DOG_PIXELS, 0, 2400)
    assert f"{difficult or 0} objects are marked as difficult" in caplog.text


def test_corners_in_either_order_and_numbers_as_tools_write_them(tmp_path):
    turned, spaced = voc_object("dog", 50, 80, 11, 21), voc_object(" dog\n", " 11 ", "21.0", 50, 80)
    source = read_voc(write_voc(tmp_path, a=voc_xml(turned, spaced)))["train"]
    assert_close(boxes_of(source, "JPEGImages/a.jpg"), [DOG_PIXELS, DOG_PIXELS])


@pytest.mark.parametrize("size", [None, "<width>0</width><height>0</height>", "<width/><height/>"])
def test_a_voc_size_that_is_missing_is_the_images(tmp_path, size):
    write_voc(
        tmp_path, a=voc_xml(DOG, size=size), b=voc_xml(DOG, size="<width>60</width><height>90.0</height>")
    )
    write_image(tmp_path / "JPEGImages/a.jpg", orientation=8)
    images = read_voc(tmp_path)["train"].content["images"]
    assert [(image["width"], image["height"]) for image in images] == [(100, 200), (60, 90)]


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "valid", "test"), ["train", "val", "test"]),
        (("Train", "Validation"), ["train", "val"]),
        (("",), ["train"]),
        (("monday", "tuesday"), ["train"]),
    ],
    ids=["Roboflow", "without test", "labelImg", "folders"],
)
@pytest.mark.parametrize(
    ("xml", "image"), [("a.xml", "a.png"), ("xml/a.xml", "photos/a.png"), ("xml/1.xml", "photos/a.png")]
)
def test_voc_files_without_vocs_folders(tmp_path, folders, splits, xml, image):
    for i, folder in enumerate(folders):
        write_image(tmp_path / folder / image)
        write_image((tmp_path / folder / image).with_name("unlabeled.png"))
        dog = voc_object("dog", 11 + i, 21, 50, 80)
        write(tmp_path / folder / xml, voc_xml(dog, name="C:\\elsewhere\\a.png"))
    sources = read_source([str(tmp_path)])
    assert [*sources] == splits
    found = {
        i["file_name"]: boxes_of(s, i["file_name"]) for s in sources.values() for i in s.content["images"]
    }
    labeled = {str(Path(folder, image)): [[10 + i, 20, 40 - i, 60]] for i, folder in enumerate(folders)}
    assert found == labeled | {str(Path(name).with_name("unlabeled.png")): [] for name in labeled}


def test_nested_voc_folders_and_image_names_that_have_changed(tmp_path):
    """CVAT keeps the folders of a task. Converted images and paths leave an outdated <filename>."""
    write_image(tmp_path / "JPEGImages/monday/a.png")
    write(tmp_path / "Annotations/monday/a.xml", voc_xml(DOG, name="a.jpg"))
    write_image(tmp_path / "JPEGImages/tuesday/a.png")
    write(tmp_path / "Annotations/tuesday/a.xml", voc_xml(CAT, name="/home/me/tuesday/a.png"))
    write_image(tmp_path / "JPEGImages/tuesday/photo.rf.12.png")
    write(tmp_path / "Annotations/000001.xml", voc_xml(DOG, CAT, name="C:\\my\\photo.rf.12.png"))
    write(tmp_path / "ImageSets/Main/default.txt", "monday/a\ntuesday/a\ntuesday/photo.rf.12\n")
    source = read_voc(tmp_path)["train"]
    assert boxes_of(source, "JPEGImages/monday/a.png") == [DOG_PIXELS]
    assert boxes_of(source, "JPEGImages/tuesday/a.png") == [CAT_PIXELS]
    assert boxes_of(source, "JPEGImages/tuesday/photo.rf.12.png") == [DOG_PIXELS, CAT_PIXELS]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_voc_files_in_the_encoding_that_they_declare(tmp_path, encoding):
    declared = encoding.removesuffix("-sig")
    xml = f'<?xml version="1.0" encoding="{declared}"?>' + voc_xml(DOG.replace("dog", "fée"))
    write_voc(tmp_path, a="")
    write(tmp_path / "Annotations/a.xml", xml.encode(encoding))
    assert read_voc(tmp_path)["train"].content["categories"] == [{"id": 1, "name": "fée"}]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation>", r"b.xml is not XML: .*line 1"),
        ('<?xml version="1.0" encoding="no such"?><annotation/>', r"b.xml is not XML"),
        ("<annotations/>", r"b.xml is not in .* root is <annotations>, not <annotation>"),
        (voc_xml(DOG, "<object><bndbox/></object>"), r"b.xml: object 2 has no <name>"),
        (voc_xml("<object><name>dog</name></object>"), r"b.xml: object 1 \(dog\) has no <bndbox>"),
        (voc_xml(voc_object("dog", 1, 2, "", 4)), r"object 1 \(dog\) has a box .* numbers: .* <xmax> ''"),
        (voc_xml(voc_object("dog", 1, 2, "3,5", 4)), r"<xmax> '3,5', <ymax> '4'\."),
        (voc_xml(voc_object("dog", 1, 2, "nan", 4)), r"\(dog\) has a box that is not four finite numbers"),
    ],
)
def test_a_wrong_voc_file_is_named(tmp_path, xml, message):
    write_voc(tmp_path, a=voc_xml(DOG), b=xml)
    with pytest.raises(ValueError, match=message) as error:
        read_source([str(tmp_path)])
    assert "\n" not in str(error.value)


def test_voc_files_and_images_that_do_not_go_together_are_named(tmp_path):
    write_voc(tmp_path, a=voc_xml(DOG))
    write(tmp_path / "Annotations/b.xml", voc_xml(DOG, name="gone.jpg"))
    write(tmp_path / "Annotations/c.xml", voc_xml(DOG))
    with pytest.raises(
        FileNotFoundError, match=r"2 XML files have no image in .*b.xml \(gone.jpg\), .*c.xml \(c\)"
    ):
        read_voc(tmp_path)
    (tmp_path / "Annotations/c.xml").unlink()
    write(tmp_path / "Annotations/b.xml", voc_xml(DOG, name="a.jpg"))
    with pytest.raises(ValueError, match=r"a.jpg has two XML files: .*a.xml and .*b.xml"):
        read_voc(tmp_path)
    (tmp_path / "Annotations/b.xml").unlink()
    write_image(tmp_path / "JPEGImages/a.png")
    with pytest.raises(ValueError, match=r"a.xml fits several images: .*a.jpg, .*a.png"):
        read_voc(tmp_path)
    for file in ("JPEGImages/a.png", "Annotations/a.xml"):
        (tmp_path / file).unlink()
    with pytest.raises(ValueError, match="has no object in any XML file"):
        read_voc(tmp_path)


# Which format it is


def test_a_coco_file_goes_with_the_folder_of_its_images(tmp_path):
    write(tmp_path / "train.json", "{}")
    sources = read_source([str(tmp_path / "train.json"), str(tmp_path)])
    assert [(split, source.content) for split, source in sources.items()] == [("train", {})]


def test_each_format_is_known_by_its_folder(tmp_path):
    write_yolo(tmp_path / "yolo", a=BOX)
    write_voc(tmp_path / "voc", a=voc_xml(DOG))
    write(tmp_path / "voc/dvc.yaml", "stages: {}\n")
    assert "(YOLO, train)" in read_source([str(tmp_path / "yolo")])["train"].description
    assert "(YOLO, train)" in read_source([str(tmp_path / "yolo/data.yaml")])["train"].description
    assert "(Pascal VOC, train)" in read_source([str(tmp_path / "voc")])["train"].description


def test_what_is_no_dataset_is_told(tmp_path):
    write_yolo(tmp_path / "yolo", a=BOX)
    write(tmp_path / "two/a.yaml", NAMES)
    write(tmp_path / "two/b.yml", NAMES)
    write(tmp_path / "coco/train/_annotations.coco.json", "{}")
    write(tmp_path / "labels/classes.txt", "wall\nfloor\n")
    write_image(tmp_path / "labels/labels/train/a.png")
    (tmp_path / "nothing").mkdir()

    def told(*values: str) -> str:
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            read_source([str(tmp_path / value) for value in values])
        assert "\n" not in str(error.value)
        return str(error.value)

    neither = "holds neither data.yaml (YOLO) nor XML files (Pascal VOC) nor a COCO file"
    assert neither in told("nothing")
    assert neither in told("labels") and "--train-semantic" in told("labels")
    write_voc(tmp_path / "VOCdevkit/VOC2007", a=voc_xml(DOG))
    assert told("VOCdevkit").endswith(f"above a Pascal VOC dataset. Give {tmp_path / 'VOCdevkit/VOC2007'}.")
    assert "There is no file or folder" in told("gone")
    assert "There is no file or folder" in told("gone.yaml")
    assert "train.json needs the folder of its images" in told("coco/train/_annotations.coco.json").replace(
        "_annotations.coco", "train"
    )
    assert "_annotations.coco.json. Give the COCO file" in told("coco")
    assert "two/a.yaml, " in told("two") and "several YAML files" in told("two")
    assert "classes.txt is not a dataset. Give a COCO file" in told("labels/classes.txt")
    assert "is not a COCO file. Leave out" in told("yolo/data.yaml", "yolo/images")
    assert "is not a COCO file. Leave out" in told("yolo/images", "train.json")
    assert told("a", "b", "c").startswith("3 values are given")


# The command line


def parsed(*args: str):
    return parse_args(train_net.build_parser(), ["--config-file", "F", *args])


TRAIN, VAL = "DATASETS.CUSTOM.TRAIN", "DATASETS.CUSTOM.VAL"


@pytest.mark.parametrize(
    ("args", "opts", "resume"),
    [
        ("--train my.yaml SEED 2", [TRAIN, ["my.yaml"], "SEED", "2"], False),
        ("--train my OUTPUT_DIR out", [TRAIN, ["my"], "OUTPUT_DIR", "out"], False),
        ("--train a.json i SOLVER.X 2", [TRAIN, ["a.json", "i"], "SOLVER.X", "2"], False),
        ("--train my SOLVER.X -1", [TRAIN, ["my"], "SOLVER.X", "-1"], False),
        (
            "--train a.json i --val my --resume SEED 2",
            [TRAIN, ["a.json", "i"], VAL, ["my"], "SEED", "2"],
            True,
        ),
        ("--val b.json i --train my SEED 2", [TRAIN, ["my"], VAL, ["b.json", "i"], "SEED", "2"], False),
        ("--train my SEED 2 --resume", [TRAIN, ["my"], "SEED", "2"], True),
        ("--train my --eval-only --val b.json i", [TRAIN, ["my"], VAL, ["b.json", "i"]], False),
        ("--train a.json TEST SEED 2", [TRAIN, ["a.json", "TEST"], "SEED", "2"], False),
        ("--train a.json IMAGES.V2 SEED 2", [TRAIN, ["a.json", "IMAGES.V2"], "SEED", "2"], False),
        ("SEED 2", ["SEED", "2"], False),
    ],
)
def test_the_command_takes_one_path_or_two_and_leaves_the_rest(tmp_path, monkeypatch, args, opts, resume):
    (tmp_path / "IMAGES.V2").mkdir()
    monkeypatch.chdir(tmp_path)
    found = parsed(*args.split())
    assert (train_net.all_opts(found), found.resume) == (opts, resume)


@pytest.mark.parametrize("args", ["--train", "--train a.json", "--val a.json SEED 2", "--train a b c SEED 2"])
def test_a_wrong_number_of_paths_ends_in_one_line(capsys, args):
    with pytest.raises(SystemExit) as end:
        parsed(*args.split())
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        end.value.code == 2 and f"error: {'argument ' if args == '--train' else ''}{args.split()[0]}" in error
    )

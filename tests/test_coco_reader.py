"""COCO files as labeling tools write them: which faults are repaired, and which are refused."""

import json

import numpy as np
import pytest
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools import mask as mask_util
from torch.testing import assert_close

from denseclip_d2.data.coco_dataset import CocoDataset
from denseclip_d2.data.coco_json import read_json
from denseclip_d2.data.coco_masks import encode, mask_area, normalize_mask
from denseclip_d2.data.coco_reader import normalize
from denseclip_d2.data.coco_source import CocoSource
from denseclip_d2.data.image_finder import ImageFinder
from denseclip_d2.data.unused_annotations import check_learnable

WIDTH, HEIGHT = 40, 30
SQUARE = [4, 4, 14, 4, 14, 14, 4, 14]


def coco() -> dict:
    """Return two images, the first with two objects, the second with one."""
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 2, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "iscrowd": 0, "area": 100.0}
            | {"bbox": [4, 4, 10, 10], "segmentation": [[*SQUARE]]}
            for i, image, category in ((1, 1, 3), (2, 1, 5), (3, 2, 5))
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    }


@pytest.fixture
def read(tmp_path):
    """Read a changed COCO file whose images exist."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name)

    def read_(change=lambda content: None) -> CocoDataset:
        content = coco()
        change(content)
        return normalize(CocoSource(content, tmp_path, "my.json"), lambda path: Image.open(path).size)

    return read_


def each(**values):
    """Return a function that changes every annotation."""
    return lambda content: [annotation.update(values) for annotation in content["annotations"]]


def without(key):
    return lambda content: [annotation.pop(key) for annotation in content["annotations"]]


def test_a_file_in_order_is_read_as_it_is(read):
    dataset = read()
    assert not dataset.changes and not dataset.changes.mask_faults
    assert dataset.content() == coco()


def test_cocos_own_files_give_detectron2s_records(coco_root):
    root = coco_root / "coco"
    for split in ("train2017", "val2017"):
        path, images = root / f"annotations/instances_{split}.json", root / split
        dataset = normalize(CocoSource(read_json(path), images.resolve(), str(path)), lambda path: (0, 0))
        assert not dataset.changes
        expected = load_coco_json(str(path), str(images.resolve()), f"{split}_as_detectron2_reads_it")
        records = {record["image_id"]: record for record in dataset.records()}
        assert [r["image_id"] for r in expected] == [*records]
        for record in expected:
            assert records[record["image_id"]] == record


# Ids


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i - 1, str, "a{}".format, lambda i: 7, lambda i: None, lambda i: 2**53 + i,
        lambda i: 10**25 + i,
    ],
    ids=["from 0", "in quotes", "words", "doubled", "missing", "from 2^53", "of 26 digits"],
)  # fmt: skip
def test_annotation_ids_become_numbers_that_every_evaluator_takes(read, change):
    dataset = read(lambda content: [a.update(id=change(a["id"])) for a in content["annotations"]])
    assert [a["id"] for a in dataset.annotations] == [1, 2, 3]
    assert "annotation ids" in str(dataset.changes)


@pytest.mark.parametrize("change", ["img_{:03d}".format, str, lambda i: 20240101120000000 + i, float])
def test_image_ids_of_any_kind_stay_the_files_own(read, change):
    def rename(content):
        for image in content["images"]:
            image["id"] = change(image["id"])
        for annotation in content["annotations"]:
            annotation["image_id"] = change(annotation["image_id"])

    dataset = read(rename)
    assert [r["image_id"] for r in dataset.records()] == [change(1), change(2)]
    assert [len(r["annotations"]) for r in dataset.records()] == [2, 1]


def test_category_ids_in_quotes_are_in_the_order_of_their_numbers(read):
    def quote(content):
        content["categories"] = [{"id": "10", "name": "dog"}, {"id": "9", "name": "cat"}]
        each(category_id="10")(content)

    dataset = read(quote)
    assert dataset.class_names == ("cat", "dog")
    assert {o["category_id"] for r in dataset.records() for o in r["annotations"]} == {1}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda c: c["images"][1].update(id=1), "image id 1 is there twice, for a.png and b.png"),
        (lambda c: c["categories"][1].update(id=3), "category id 3 is there twice, for cat and dog"),
        (lambda c: c["images"][1].update(id="2"), "some image ids are numbers and some are words"),
        (lambda c: c["images"][1].update(id=None), "image b.png has the id None"),
        (lambda c: c["images"][1].pop("id"), "image b.png has the id None"),
        (lambda c: c["annotations"][2].update(image_id="2"), "annotation 3 has the image_id '2'.*a number"),
        (lambda c: c["annotations"][2].update(category_id="5"), "annotation 3 has the category_id '5'"),
        (lambda c: c["annotations"][2].update(category_id=4), r"annotation 3 \(image b.png\).*category_id 4"),
        (lambda c: c["images"][1].update(file_name="a.png"), "images 1 and 2 are both the file .*a.png"),
        (lambda c: c["images"][1].update(file_name=""), "image 2 has the file_name ''"),
        (lambda c: c["categories"][0].update(name=7), "category 3 has the name 7"),
        (lambda c: c["categories"][0].pop("name"), "category 3 has no name"),
        (lambda c: c.update(annotations=[]), "there are no annotations"),
        (lambda c: c.update(images="a.png"), "'images' is not a list of objects"),
    ],
)
def test_what_is_ambiguous_is_refused_by_file_and_item(read, change, error):
    with pytest.raises(ValueError, match=f"^my.json.*{error}"):
        read(change)


def test_annotations_of_no_image_are_left_out_and_counted(read):
    dataset = read(lambda content: content["annotations"][2].update(image_id=9))
    assert len(dataset.annotations) == 2 and "image_id is of no image" in str(dataset.changes)


# Values


@pytest.mark.parametrize("value", [None, False, "0"])
def test_iscrowd_becomes_a_number(read, value):
    assert [a["iscrowd"] for a in read(each(iscrowd=value)).annotations] == [0, 0, 0]
    assert [a["iscrowd"] for a in read(without("iscrowd")).annotations] == [0, 0, 0]
    assert [a["iscrowd"] for a in read(each(iscrowd=True)).annotations] == [1, 1, 1]
    assert [a["iscrowd"] for a in read(each(ignore=1)).annotations] == [1, 1, 1]


@pytest.mark.parametrize("value", [None, 0, "", -1, float("nan")])
def test_the_area_is_the_masks_else_the_boxs(read, value):
    triangle = [[4, 4, 24, 4, 4, 24]]
    area = [a["area"] for a in read(each(area=value, segmentation=triangle)).annotations]
    rle = mask_util.merge(mask_util.frPyObjects(triangle, HEIGHT, WIDTH))
    assert area == [float(mask_util.area(rle))] * 3 and 180 < area[0] < 220
    area = [a["area"] for a in read(each(area=value, segmentation=[])).annotations]
    assert area == [100.0] * 3
    assert [a["area"] for a in read(each(area="33.5")).annotations] == [33.5] * 3
    assert not read(each(area=33.5)).changes  # smaller than the box, as in the file


def test_boxes_are_numbers_inside_their_image(read):
    assert read(each(bbox=["4", "4.5", "10", "10"])).annotations[0]["bbox"] == [4.0, 4.5, 10.0, 10.0]
    assert read(each(bbox=[-5, 20, 20, 20])).annotations[0]["bbox"] == [0, 20, 15, 10]
    assert read(each(bbox=[-0.4, 0, 40.5, 30])).annotations[0]["bbox"] == [-0.4, 0, 40.5, 30]  # as in COCO
    assert read(without("bbox")).annotations[0]["bbox"] == [4, 4, 10, 10]  # the mask's
    dataset = read(lambda content: content["annotations"][0].update(bbox=[500, 500, 20, 20]))
    assert len(dataset.annotations) == 2 and "outside the image" in str(dataset.changes)


def test_what_is_no_object_is_left_out_and_counted(read):
    """VIA's points, pylabel's duplicates, and Roboflow's category for the whole project."""

    def change(content):
        first = content["annotations"][0]
        content["annotations"] += [
            {**first, "id": 9, "bbox": [], "segmentation": [[]], "area": []},
            {**first},
        ]
        content["categories"].insert(0, {"id": 0, "name": "my project", "supercategory": "none"})
        for category in content["categories"][1:]:
            category["supercategory"] = "my project"

    dataset = read(change)
    assert [a["id"] for a in dataset.annotations] == [1, 2, 3]
    assert dataset.class_names == ("cat", "dog")
    assert len(dataset.changes.first) == 3 and not dataset.changes.mask_faults
    same_id = read(lambda content: content["annotations"][1].update(id=1))
    assert len(same_id.annotations) == 3  # another class


def test_turned_boxes_are_told(read):
    dataset = read(each(attributes={"rotation": 30.0}))
    assert [*dataset.changes.first] == ["attributes.rotation is not 0: the box is read as an upright one"]
    assert not read(each(attributes={"occluded": False, "rotation": 0.0})).changes
    assert not read(each(attributes=None)).changes


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"bbox": [0.1, 0.1, 0.5, 0.5]}, "all 3 boxes are between 0 and 1.*in pixels"),
        ({"bbox": [4, 4, -10, 10]}, r"annotation 1 \(image a.png\).*negative width"),
        ({"bbox": [4, 4, 10]}, "annotation 1 .*Write x, y, width and height"),
        ({"bbox": [4, 4, float("nan"), 10]}, "annotation 1 .*all of them finite"),
        ({"iscrowd": 2}, "annotation 1 .*iscrowd 2"),
    ],
)
def test_values_that_mean_nothing_are_refused(read, values, error):
    with pytest.raises(ValueError, match=error):
        read(each(**values))


def test_sizes_come_from_the_images_where_the_file_has_none(read):
    for values in (
        {"width": None},
        {"width": 0, "height": 0},
        {"width": str(WIDTH)},
        {"width": float(WIDTH)},
    ):
        dataset = read(lambda content, values=values: content["images"][0].update(values))
        assert (dataset.images[0]["width"], dataset.images[0]["height"]) == (WIDTH, HEIGHT)
        assert type(dataset.images[0]["width"]) is int and dataset.changes


# Masks


def pixels(mask) -> np.ndarray:
    return mask_util.decode(encode(mask, HEIGHT, WIDTH)).astype(bool)


def square_rle(kind: str) -> dict:
    """Return the square's pixels as run lengths."""
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    image[4:14, 4:14] = 1
    if kind == "compressed":
        rle = mask_util.encode(np.asfortranarray(image))
        return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    flat = np.r_[0, image.flatten(order="F"), 0]
    edges = np.r_[0, np.flatnonzero(np.diff(flat)), image.size]
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(edges).tolist()}


@pytest.mark.parametrize(
    "segmentation",
    [
        [SQUARE],
        SQUARE,
        [str(x) for x in SQUARE],
        [[[4, 4], [14, 4], [14, 14], [4, 14]]],
        [[4, 4], [14, 4], [14, 14], [4, 14]],
        [SQUARE, [1, 1, 2, 2]],
        {"exterior": [[4, 4], [14, 4], [14, 14], [4, 14]], "interiors": []},
        [{"exterior": [[4, 4], [14, 4], [14, 14], [4, 14]]}],
        square_rle("compressed"),
        square_rle("counts"),
        [square_rle("counts")],
    ],
)
def test_masks_written_in_other_ways_are_the_same_pixels(segmentation):
    mask, _ = normalize_mask(segmentation, HEIGHT, WIDTH)
    assert_close(pixels(mask), pixels([SQUARE]), rtol=0, atol=0)
    assert mask_area(mask, HEIGHT, WIDTH) == 100


def test_holes_become_run_lengths():
    hole = [[7, 7], [11, 7], [11, 11], [7, 11]]
    segmentation = {"exterior": [[4, 4], [14, 4], [14, 14], [4, 14]], "interiors": [hole]}
    mask, fault = normalize_mask([segmentation], HEIGHT, WIDTH)
    assert not fault and mask_area(mask, HEIGHT, WIDTH) == 100 - 16
    assert not pixels(mask)[8, 8] and pixels(mask)[5, 5]


@pytest.mark.parametrize(
    ("segmentation", "fault"),
    [
        ([[1, 1, 9, 9]], "2 points"),
        ([[1, 1, 9, 9, 3]], "5 numbers"),
        ([[*SQUARE, 3]], "9 numbers"),
        ([[]], "0 points"),
        ([["a"] * 8], "neither polygons nor an RLE"),
        ([[1, 1, 9, 9, float("nan"), 3]], "not finite"),
        ("polygon", "neither polygons nor an RLE"),
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, "height and width exchanged"),
        ({"size": [9, 9], "counts": [81]}, r"size \[9, 9\], the image is 30 x 40"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, 10]}, "cover 20 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [-1, 1, WIDTH * HEIGHT]}, "a run of negative length"),
        ({"counts": [10, 10]}, "neither polygons nor an RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, "neither polygons nor an RLE"),
    ],
)
def test_an_invalid_mask_is_dropped_and_its_box_kept(read, segmentation, fault):
    dataset = read(lambda content: content["annotations"][1].update(segmentation=segmentation))
    assert len(dataset.annotations) == 3 and "segmentation" not in dataset.annotations[1]
    (named,) = dataset.changes.mask_faults
    assert named.startswith("annotation 2 (image a.png): ")
    with pytest.raises(AssertionError, match=fault):
        raise AssertionError(named)


def test_the_pixels_of_compressed_run_lengths_are_counted(read):
    """Random masks, some with long runs, and truncated strings."""
    rng = np.random.default_rng(0)
    for share in (0.0, 0.001, 0.5, 1.0):
        image = np.asfortranarray(rng.random((300, 401)) < share, np.uint8)
        rle = mask_util.encode(image)
        assert normalize_mask({**rle, "counts": rle["counts"].decode()}, 300, 401)[1] == ""
        assert normalize_mask({**rle, "counts": rle["counts"].decode() + "5"}, 300, 401)[1] != ""


# File names


@pytest.mark.parametrize(
    "name",
    [
        "x/a.png", "./x/a.png", "x//a.png", "../images/x/a.png", "x\\a.png", "C:\\work\\images\\x\\a.png",
        "/data/upload/1/x/a.png", "../up/1/x/a.png", "https://host/images/x/a.png?token=1",
        "/data/local-files/?d=images/x/a.png", "http://host/data/local-files/?d=images%2Fx%2Fa.png",
    ],
)  # fmt: skip
def test_an_image_is_found_by_the_longest_end_of_its_name(tmp_path, name):
    root = tmp_path / "images"
    for folder in ("x", "y"):
        (root / folder).mkdir(parents=True)
        (root / folder / "a.png").touch()
    assert ImageFinder(root).find(name) == root / "x/a.png"
    with pytest.raises(ValueError, match=r"'z/a.png' may be any of 2 files in .*x/a.png, y/a.png"):
        ImageFinder(root).find("z/a.png")
    assert ImageFinder(root).find("b.png") == root / "b.png"  # the check of images reports the missing file


def test_an_absolute_path_outside_the_folder_is_taken_last(tmp_path):
    for folder in ("images", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "other/a.png").touch()
    finder = ImageFinder(tmp_path / "images")
    assert finder.find(str(tmp_path / "other/a.png")) == tmp_path / "other/a.png"
    (tmp_path / "images/a.png").touch()
    assert ImageFinder(tmp_path / "images").find(str(tmp_path / "other/a.png")) == tmp_path / "images/a.png"


# Text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_in_any_encoding_of_unicode(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps({"name": "Gießkanne"}, ensure_ascii=False).encode(encoding))
    assert read_json(path) == {"name": "Gießkanne"}


def test_other_text_is_refused_by_its_encoding(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{"name": "Gießkanne"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.json, line 1: byte 0xdf is not UTF-8. Save the file as UTF-8"):
        read_json(path)


# What training leaves out


def test_what_training_leaves_out_is_counted_by_reason(read):
    def change(content):
        first, second, third = content["annotations"]
        first.update(iscrowd=1)
        second.update(bbox=[4, 4, 0, 10])
        third.update(bbox=[4, 4, 1, 1])

    records = read(change).records()
    records[1]["annotations"].append({**records[1]["annotations"][0], "bbox": [41, 4, 5, 5]})
    unused = check_learnable(["my"], records)
    assert unused == {
        "crowds (iscrowd 1)": 1,
        "boxes without area": 1,
        "boxes outside their image": 1,
    }
    with pytest.raises(ValueError, match=r"my: there is no object to learn from. Of 2 annotations.*1 crowds"):
        check_learnable(["my"], records[:1])
    assert not check_learnable(["labels"], [{"sem_seg_file_name": "a.png"}])

import json

import pytest
from conftest import run_tool_here
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from denseclip_d2.data import register_semantic_folder
from denseclip_d2.data.statistics import statistics_of
from denseclip_d2.shapes.dataset import SEMANTIC_CLASS_NAMES

TOOL = "browse_dataset.py"
NAMES = ["dog", "cat", "traffic light"]


@pytest.fixture
def records(tmp_path) -> list[dict]:
    """Return three images with some odd boxes. Two images are equal."""
    for i, color in enumerate(("red", "red", "blue")):
        Image.new("RGB", (100, 80), color).save(tmp_path / f"{i}.png")
    twice = 2 * [(1, 1, 9, 9, 0)]
    boxes = [[(10, 10, 40, 40, 0), (90, 10, 40, 20, 0)], [], [(0, 0, 100, 80, 1), (5, 5, 3, 30, 1), *twice]]
    return [
        {
            "file_name": str(tmp_path / f"{i}.png"), "height": 80, "width": 100,
            "annotations": [
                {"bbox": box[:4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": box[4]} for box in of_image
            ],
        }
        for i, of_image in enumerate(boxes)
    ]  # fmt: skip


def test_statistics_count_objects_and_name_oddities(records):
    options = {"scale_of": lambda height, width: 2.0, "tokens_of": lambda name: len(name) // 3}
    found = statistics_of(records, NAMES, **options)
    assert (found.images, found.labeled) == (3, 2)
    assert found.objects == {"dog": 4, "cat": 2, "traffic light": 0}
    assert found.in_images == {"dog": 2, "cat": 1, "traffic light": 0}
    assert found.sizes == {"small": 4, "medium": 2, "large": 0}
    first, second, third = (record["file_name"] for record in records)
    assert {oddity.what: oddity.where for oddity in found.odd} == {
        "images are the same, byte by byte": (f"{first} = {second}",),
        "images have nothing labeled": (second,),
        "classes are in no image": ("traffic light",),
        "classes are in one image alone": ("cat",),
        "names are read as more than 3 tokens": ("traffic light (4)",),
        "boxes reach beyond their image": (f"dog in {first}",),
        "boxes are there twice, of one class": (f"dog in {third}",),
        "objects are narrower than 8 pixels as the model gets them": (f"cat in {third}",),
    }


def test_statistics_count_pixels_of_label_maps(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    labels = Image.new("L", (4, 4), 255)
    labels.paste(1, (0, 0, 4, 1))
    labels.save(tmp_path / "labels.png")
    record = {"file_name": str(tmp_path / "image.png"), "sem_seg_file_name": str(tmp_path / "labels.png")}
    found = statistics_of([record], NAMES)
    assert found.objects == {"dog": 0, "cat": 4, "traffic light": 0} and found.sizes == {}


@pytest.mark.parametrize("kind", ["mask_rcnn", "semantic_fpn"])
def test_browse_dataset_writes_statistics_and_images(kind, small_shapes, tmp_path, monkeypatch, capsys):
    root, name, _ = small_shapes
    if kind == "semantic_fpn":
        name = "labels"
        register_semantic_folder(name, root / "train", root / "labels" / "train", SEMANTIC_CLASS_NAMES)
    config = f"configs/Shapes/denseclip_{kind}_tiny.yaml"
    options = ["--config-file", config, "--dataset", name, "--count", "2"]
    run_tool_here(monkeypatch, TOOL, *options, "--output", str(tmp_path / "out"))
    if kind == "semantic_fpn":
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    written = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert written["images"] == 8 and sum(written["objects"].values()) > 0
    assert Image.open(tmp_path / "out" / "images.png").width > 900  # ground truth and two training inputs
    assert f"{name}: 8 images, " in capsys.readouterr().out


def test_without_resizing_objects_are_not_called_narrow(small_shapes, tmp_path, monkeypatch):
    options = ["--config-file", "configs/Shapes/denseclip_mask_rcnn_tiny.yaml", "--dataset", small_shapes[1]]
    run_tool_here(
        monkeypatch, TOOL, *options, "--count", "1", "--output", str(tmp_path), "INPUT.MIN_SIZE_TEST", "0"
    )
    odd = json.loads((tmp_path / "statistics.json").read_text())["odd"]
    assert not [oddity for oddity in odd if "narrower" in oddity["what"]]


def test_an_unknown_dataset_is_a_one_line_error(tmp_path, monkeypatch):
    config = "configs/Shapes/denseclip_mask_rcnn_tiny.yaml"
    with pytest.raises(SystemExit, match="error: DATASETS names 'nowhere', which is not registered"):
        run_tool_here(
            monkeypatch, TOOL, "--config-file", config, "--dataset", "nowhere", "--output", str(tmp_path)
        )

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from PIL import Image

from configs import prepared_cfg
from denseclip_d2 import Predictor, model_zoo
from denseclip_d2.config import load_config
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.model_zoo import zoo
from denseclip_d2.model_zoo.zoo import ZooEntry, local_file, zoo_index
from denseclip_d2.shapes.dataset import CLASS_NAMES, SEMANTIC_CLASS_NAMES
from denseclip_d2.web_demo.session import photographs

NAME = "Shapes/denseclip_retinanet_tiny.yaml"
PHOTOGRAPHS = "WithoutTraining/photographs.yaml"


@pytest.mark.parametrize("name", [name for name in zoo_index() if name.endswith(".yaml")])
def test_every_entry_has_its_config_and_its_weights(name):
    model = model_zoo.get(name, trained=True)  # all tensors, or an error
    assert model.training
    assert model.backbone.language.precomputed == zoo_index()[name].precomputed


def test_configs_come_by_their_names():
    assert model_zoo.get_config(NAME) == load_config(f"configs/{NAME}", [])
    trained = model_zoo.get_config(NAME, trained=True)
    assert trained.MODEL.WEIGHTS == model_zoo.get_checkpoint_url(NAME) == f"denseclip://{NAME}"
    with pytest.raises(ValueError, match=f"no config 'Shapes/nothing.yaml'. Choose one of .*{NAME}"):
        model_zoo.get_config("Shapes/nothing.yaml")
    coco = "COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml"
    with pytest.raises(ValueError, match=f"no trained weights for '{coco}'. It has: Shapes/"):
        model_zoo.get_config(coco, trained=True)


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn", "mask_rcnn_text"])
def test_the_zoos_models_find_shapes(small_shapes, name):
    """In unseen images, most objects by place and name."""
    predictor = Predictor.from_zoo(f"Shapes/denseclip_{name}_tiny.yaml")
    assert share_found(predictor, small_shapes, masks="mask" in name) > 0.75


def test_the_zoos_detector_of_any_names_finds_shapes(small_shapes):
    """The names of another dataset than that of its training."""
    predictor = Predictor.from_zoo("Shapes192/denseclip_retinanet_text_tiny.yaml")
    predictor.set_names(CLASS_NAMES)
    assert share_found(predictor, small_shapes, threshold=0.2) > 0.6


def share_found(predictor, small_shapes, *, masks=False, threshold=0.4) -> float:
    """Return the share of the objects of the validation set that are found by place and name."""
    found = total = 0
    for record in load_datasets(small_shapes[1:], filter_empty=False, check_images=False):
        instances = predictor(record["file_name"])["instances"]
        instances = instances[instances.scores > threshold]
        assert instances.has("pred_masks") == masks
        for annotation in record["annotations"]:
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            overlap = pairwise_iou(instances.pred_boxes, Boxes([box]))[:, 0]
            right = instances.pred_classes == annotation["category_id"]
            found, total = found + bool((overlap[right] > 0.5).any()), total + 1
    assert total > 20
    return found / total


@pytest.mark.parametrize("name", ["semantic_fpn", "semantic_fpn_text"])
def test_the_zoos_segmentors_label_shapes(name, small_shapes):
    """In unseen images, most pixels of most classes."""
    predictor = Predictor.from_zoo(f"Shapes/denseclip_{name}_tiny.yaml")
    right, there = torch.zeros(19), torch.zeros(19)
    for path in sorted(small_shapes[0].glob("val/*.png")):
        labels = torch.from_numpy(np.array(Image.open(small_shapes[0] / "labels" / "val" / path.name))).long()
        found = predictor(path)["sem_seg"].argmax(0)
        there += torch.bincount(labels.flatten(), minlength=19)
        right += torch.bincount(labels[labels == found], minlength=19)
    assert right.sum() / there.sum() > 0.95
    assert (right / there)[there > 0].mean() > 0.8


@pytest.fixture(scope="module")
def of_photographs() -> Predictor:
    return Predictor.from_zoo(PHOTOGRAPHS)


@pytest.mark.parametrize(
    "file, box, name",  # x from, x to, y from, y to
    [
        ("astronaut.jpg", (350, 470, 0, 285), "space shuttle"),
        ("astronaut.jpg", (275, 512, 340, 512), "helmet"),
        ("astronaut.jpg", (0, 100, 0, 400), "flag"),
        ("coffee.jpg", (170, 410, 15, 310), "cup"),
    ],
)
def test_names_are_found_in_the_photographs_of_the_demo(of_photographs, file, box, name):
    """A name is several times as probable in its box as elsewhere."""
    path, names = next(pair for pair in photographs() if Path(pair[0]).name == file)
    heat = of_photographs(path, [name], names=of_photographs.with_background(names))["heat_maps"][0]
    inside = torch.zeros_like(heat, dtype=torch.bool)
    inside[box[2] : box[3], box[0] : box[1]] = True
    assert heat[inside].mean() > 2.5 * heat[~inside].mean()
    assert heat.min() >= 0 and 0.5 < heat.max() <= 1


def test_a_closeup_of_a_cat_is_a_cat(of_photographs):
    path, _ = photographs()[2]
    labels = of_photographs(path)["sem_seg"].argmax(0)  # of COCO's 80 names and the background
    assert (labels == of_photographs.class_names.index("cat")).float().mean() > 0.5


def test_a_name_that_the_zoos_table_lacks_is_told_in_one_line(of_photographs):
    path, _ = photographs()[2]
    assert len(of_photographs.guidance.language.readable_names) == 2176
    found = of_photographs(path, names=["Tabby  cat|couch", "SOFA"])["sem_seg"]
    assert found.argmax(0).float().mean() < 0.5
    for image, names in (([], ["unicycle", "cat on a sofa"]), (["cat on a sofa"], ["cat"])):
        with pytest.raises(
            ValueError, match="^'cat on a sofa' is none of the 2176 names .*: docs/photographs.md"
        ):
            of_photographs(path, image, names=names)


def test_labels_of_ten_photographs(of_photographs):
    """The share of pixels with the right one of 123 names, none of which was trained."""
    folder = SHARED / "datasets/photographs/labels_of_pixels"
    if not folder.is_dir():
        pytest.skip("needs ../shared/datasets/photographs")
    known = {*of_photographs.guidance.language.readable_names}
    every = (folder / "classes.txt").read_text().split("\n")
    names = [name for name in every if name in known]
    right = there = 0
    for path in sorted((folder / "images/val").iterdir())[:10]:
        labels = np.asarray(Image.open(folder / "labels/val" / f"{path.stem}.png"))
        found = of_photographs(path, names=names)["sem_seg"].argmax(0).numpy()
        numbers = np.array([every.index(name) for name in names])
        counted = np.isin(labels, numbers)
        right, there = right + (labels == numbers[found])[counted].sum(), there + counted.sum()
    assert 100 * right / there == pytest.approx(23, abs=2)


def test_the_zoos_segmentor_of_streets_labels_a_frame():
    """Of CamVid's test set: most pixels, and of the large classes nearly all."""
    folder = SHARED / "datasets/camvid"
    if not folder.is_dir():
        pytest.skip("needs ../shared/datasets/camvid")
    predictor = Predictor.from_zoo("CamVid/denseclip_semantic_fpn_text_5x.yaml")
    labels = np.asarray(Image.open(folder / "labels/test/0001TP_008550.png"))
    found = predictor(folder / "images/test/0001TP_008550.jpg")["sem_seg"].argmax(0).numpy()
    assert (found == labels)[labels != 255].mean() > 0.9
    for name in ("sky", "building", "road", "car"):
        own, right = (x == predictor.class_names.index(name) for x in (found, labels))
        assert (own & right).sum() / ((own | right) & (labels != 255)).sum() > 0.8


@pytest.mark.parametrize(
    "file, name, boxes",  # COCO's boxes: x, y, width, height
    [
        ("000000318080.jpg", "bear", [[58, 135, 316, 204], [355, 124, 285, 200]]),
        ("000000415748.jpg", "elephant", [[34, 281, 266, 335]]),
    ],
)
def test_the_zoos_detector_finds_animals_in_photographs(file, name, boxes):
    path = SHARED / "datasets/coco/val2017" / file
    if not path.is_file():
        pytest.skip("needs ../shared/datasets/coco")
    predictor = Predictor.from_zoo("Photographs/denseclip_faster_rcnn_text_3x.yaml")
    for names in (None, [name, "car"]):  # of 80 names, and of two
        found = predictor(path, names=names)["instances"]
        titles = names or list(predictor.class_names)
        found = found[(found.pred_classes == titles.index(name)) & (found.scores > 0.5)]
        corners = BoxMode.convert(torch.tensor(boxes).float(), BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
        assert (pairwise_iou(Boxes(corners), found.pred_boxes).amax(1) > 0.6).all()


def test_files_pil_images_and_arrays_give_the_same(small_shapes):
    predictor = Predictor.from_zoo(NAME)
    path = next(small_shapes[0].glob("val/*.png"))
    image = Image.open(path)
    bgr = np.asarray(image.convert("RGB"))[:, :, ::-1]
    outputs = [predictor(x, score_map_names=["red solid circle"]) for x in (str(path), path, image, bgr)]
    assert outputs[0]["score_maps"].shape == (1, *bgr.shape[:2])
    for other in outputs[1:]:
        assert torch.equal(other["instances"].scores, outputs[0]["instances"].scores)
        assert torch.equal(other["score_maps"], outputs[0]["score_maps"])
    for array in (np.zeros((8, 8)), np.zeros((0, 0, 3), np.uint8), bgr[..., :1]):
        with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8, BGR, not \("):
            predictor(array)
    with pytest.raises(ValueError, match=r"a list of names, such as \['red solid circle'\]"):
        predictor(bgr, score_map_names="red solid circle")


def test_a_photo_taken_upright_is_seen_upright(tmp_path):
    """Cameras leave the rotation to the reader, whatever the type of the input."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    predictor = Predictor.from_zoo(NAME)
    by_path, by_pil = (
        predictor(x)["instances"] for x in (tmp_path / "photo.png", Image.open(tmp_path / "photo.png"))
    )
    assert by_path.image_size == by_pil.image_size == (100, 60)


@pytest.mark.parametrize(("file", "state"), [(None, "does not have the published"), ("x", "is missing")])
def test_a_file_that_is_missing_or_changed_is_not_used(monkeypatch, file, state):
    entry = ZooEntry(file or "denseclip_retinanet_tiny.safetensors", "0" * 64)
    monkeypatch.setattr(zoo, "zoo_index", lambda: {"far.yaml": entry})
    with pytest.raises(ValueError, match=f"{entry.file} {state}.*Install this package again"):
        local_file("far.yaml")


def test_zoo_weights_are_small_enough_for_the_repository():
    assert all(entry.path.stat().st_size < 16 * 10**6 for entry in zoo_index().values())


@pytest.mark.parametrize("config", ["denseclip_retinanet_tiny", "denseclip_semantic_fpn_tiny"])
def test_score_maps_of_any_words_leave_those_of_classes_alone(config, tmp_path):
    cfg = prepared_cfg(f"configs/Shapes/{config}.yaml", ["TEST.SLIDING_WINDOW.ENABLED", "semantic" in config])
    cfg.MODEL.DENSECLIP.CLASS_NAMES = SEMANTIC_CLASS_NAMES[: 19 if "semantic" in config else 18]
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    predictor = Predictor(cfg)
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    names = ["a purple star", "red solid circle", "a purple star", "the nose of a dog"]
    maps = predictor(image, score_map_names=names)["score_maps"]
    assert maps.shape == (4, 90, 120)
    assert torch.equal(maps[0], maps[2])
    assert torch.equal(maps[1], predictor(image, score_map_names=names[1:2])["score_maps"][0])
    assert not torch.allclose(maps[0], maps[3])


def test_folded_weights_say_that_they_know_no_other_words():
    with pytest.raises(ValueError, match="'a dog' is not a class.*these have precomputed text embeddings"):
        Predictor.from_zoo(NAME)(np.zeros((64, 64, 3), np.uint8), score_map_names=["a dog"])

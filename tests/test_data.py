import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from detectron2.utils.events import EventStorage
from PIL import Image
from torch.nn.functional import max_pool2d

from denseclip_d2.builder import build_model
from denseclip_d2.config import load_config
from denseclip_d2.data import get_class_names
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.data.mapper import DatasetMapper
from denseclip_d2.guidance.losses import region_targets
from denseclip_d2.shapes.dataset import CLASS_NAMES
from denseclip_d2.utils.random_state import seeded_random

CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"
MASK_RCNN = "configs/Shapes/denseclip_mask_rcnn_tiny.yaml"


def load(name: str, check_images: bool = True) -> list[dict]:
    return load_datasets([name], filter_empty=False, check_images=check_images)


def edit(root, change) -> None:
    """Change the training annotations on the disk."""
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_sound_dataset_loads_whole(small_shapes):
    _, train, val = small_shapes
    assert (len(load(train)), len(load(val))) == (8, 4)


def test_an_unregistered_dataset_is_refused_with_what_is_near(small_shapes):
    with pytest.raises(ValueError, match="'shapes_trian', which is not registered.*shapes_train"):
        load("shapes_trian")


def test_a_missing_annotation_file_is_named_with_the_way_out(small_shapes):
    root, train, _ = small_shapes
    (root / "annotations/instances_train.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"instances_train.json.*datasets/README.md.*DETECTRON2_DATASETS"
    ):
        load(train)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"images": [], "annotations": [{"id": 1}], "categories": []}']
)
def test_a_malformed_annotation_file_is_named(small_shapes, content):
    root, train, _ = small_shapes
    (root / "annotations/instances_train.json").write_text(content)
    with pytest.raises(ValueError, match=r"Malformed annotations in .*instances_train.json"):
        load(train)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
        lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 4]),
        lambda c: c["annotations"][0].update(bbox=[1, 2, float("nan"), 4]),
        lambda c: c["annotations"][0].pop("bbox"),
        lambda c: c["annotations"][0].update(category_id=99),
        lambda c: c["images"][0].pop("file_name"),
    ],
    ids=["three numbers", "negative", "nan", "no box", "unknown category", "no file name"],
)
def test_malformed_annotations_are_refused(small_shapes, change):
    root, train, _ = small_shapes
    edit(root, change)
    with pytest.raises(ValueError, match=r"Malformed annotations in .*instances_train.json"):
        load(train)


def break_image(root, fault: str) -> str:
    path = root / "train/000000000003.png"
    if fault == "is missing":
        path.unlink()
    elif fault == "is broken or truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif fault == "not an image":
        path.write_bytes(b"text")
    else:
        with Image.open(path) as image:
            image.resize((image.width + 1, image.height)).save(path)
    return path.name


@pytest.mark.parametrize("fault", ["is missing", "is broken or truncated", "not an image", "annotated as"])
def test_an_unusable_image_is_named_with_its_fault(small_shapes, fault):
    root, train, _ = small_shapes
    name = break_image(root, fault)
    fault = "is not an image" if fault == "not an image" else fault
    with pytest.raises(ValueError, match=rf"(?s)1 of 8 images of .*{name} .*{fault}"):
        load(train)
    assert len(load(train, check_images=False)) == 8


def test_a_truncated_jpeg_is_found_and_a_sound_one_with_a_tail_is_not(small_shapes):
    """Some cameras append data to an image. Such a file is decoded completely before it is refused."""
    root, train, _ = small_shapes
    png = root / "train/000000000003.png"
    jpeg = png.with_suffix(".jpg")
    Image.open(png).save(jpeg, quality=95)
    edit(root, lambda c: c["images"][2].update(file_name=jpeg.name))
    jpeg.write_bytes(jpeg.read_bytes() + b"tail")
    assert len(load(train)) == 8
    jpeg.write_bytes(jpeg.read_bytes()[:1500])
    with pytest.raises(ValueError, match=f"{jpeg.name} is broken or truncated"):
        load(train)


def test_an_image_turned_by_its_camera_is_measured_as_it_is_read(small_shapes):
    root, train, _ = small_shapes
    png = root / "train/000000000003.png"
    with Image.open(png) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(png, exif=exif)
    assert len(load(train)) == 8


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1)])
def test_no_image_is_too_thin_to_train_on(small_shapes, size):
    """After resizing to MAX_SIZE_TRAIN, its short side would be less than half a pixel."""
    root, train, _ = small_shapes
    Image.new("RGB", size, "red").save(root / "train/000000000003.png")
    edit(root, lambda c: c["images"][2].update(width=size[0], height=size[1]))
    mapper = DatasetMapper(load_config(CONFIG, []))
    image = mapper(load(train)[2])["image"]
    assert min(image.shape[1:]) >= 1


def test_class_names_come_from_the_config_or_the_training_set(small_shapes):
    """A dataset registered without names, as in Detectron2's tutorial, has the names in its file."""
    _, train, val = small_shapes
    cfg = load_config(CONFIG, ["DATASETS.TRAIN", f"('{train}',)"])
    assert tuple(get_class_names(cfg)) == CLASS_NAMES
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), (val,)
    assert tuple(get_class_names(cfg)) == CLASS_NAMES
    cfg.MODEL.DENSECLIP.CLASS_NAMES = ("one", "two")
    assert tuple(get_class_names(cfg)) == ("one", "two")


def test_no_class_names_anywhere_is_refused():
    cfg = load_config(CONFIG, ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"])
    with pytest.raises(ValueError, match="No class names.*CLASS_NAMES is empty"):
        get_class_names(cfg)


CROPPED = (
    "INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [60, 80],
    "INPUT.MIN_SIZE_TRAIN", (60,), "INPUT.RANDOM_FLIP", "none",
)  # fmt: skip


def record_of(path, *polygons: list[float], size: tuple[int, int] = (160, 120)) -> dict:
    """Return a record in Detectron2's format with one object per polygon."""
    Image.new("RGB", size).save(path)
    boxes = [[min(p[::2]), min(p[1::2]), max(p[::2]), max(p[1::2])] for p in polygons]
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": i, "segmentation": [polygon]}
        for i, (box, polygon) in enumerate(zip(boxes, polygons, strict=True))
    ]
    return {"file_name": str(path), "width": size[0], "height": size[1], "annotations": annotations}


def test_a_crop_cuts_polygons_and_drops_those_outside_with_their_boxes(tmp_path):
    """A triangle, a concave polygon that a crop can cut into several, and an object outside the crop."""
    triangle = [0.0, 0.0, 90.0, 0.0, 0.0, 70.0]
    fork = [(10, 10), (150, 10), (150, 40), (30, 40), (30, 80), (150, 80), (150, 110), (10, 110)]
    fork = [float(x) for point in fork for x in point]
    corner = [100.0, 75.0, 108.0, 75.0, 108.0, 83.0, 100.0, 83.0]
    record = record_of(tmp_path / "a.png", triangle, fork, corner)
    mapper = DatasetMapper(load_config(MASK_RCNN, list(CROPPED)))
    whole = [polygons_to_bitmask([np.array(p)], 120, 160) for p in (triangle, fork, corner)]
    kept, parts = [], 0
    for seed in range(40):
        with seeded_random(seed):
            mapped = mapper(record)
        with seeded_random(seed):
            crop = T.RandomCrop("absolute", (60, 80)).get_transform(np.zeros((120, 160, 3)))
        instances = mapped["instances"]
        seen = {i: mask[crop.y0 :, crop.x0 :][:60, :80] for i, mask in enumerate(whole)}
        assert instances.gt_classes.tolist() == [i for i, mask in seen.items() if mask.any()]
        classes = instances.gt_classes.tolist()
        for i, box, polygons in zip(classes, instances.gt_boxes, instances.gt_masks, strict=True):
            mask = polygons_to_bitmask(polygons, 60, 80)
            assert (mask != seen[i]).sum() <= 0.02 * 60 * 80  # pixels that an outline divides
            ys, xs = np.nonzero(seen[i])
            expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            np.testing.assert_allclose(box, expected, atol=2)  # a sharp corner covers no pixel
            parts = max(parts, len(polygons))
        kept.append(len(instances))
    assert (min(kept), max(kept)) == (2, 3)
    assert parts == 2


def test_an_image_without_objects_can_be_cropped(tmp_path):
    """With DATALOADER.FILTER_EMPTY_ANNOTATIONS False, or with crowds only, the image is trained on."""
    mapper = DatasetMapper(load_config(MASK_RCNN, list(CROPPED)))
    crowd = record_of(tmp_path / "a.png", [10.0, 10.0, 50.0, 10.0, 50.0, 50.0])
    crowd["annotations"][0]["iscrowd"] = 1
    for record in (record_of(tmp_path / "b.png"), crowd):
        mapped = mapper(record)
        assert mapped["image"].shape == (3, 60, 80)
        assert len(mapped["instances"]) == 0


MASKS_LEARNED = ["MODEL.DENSECLIP.LOSS_TARGET", "mask"]
OUTLINE = [20.0, 12.5, 101.0, 20.0, 88.5, 70.0, 60.0, 35.0, 30.0, 77.0]


def counts_of(mask: np.ndarray) -> list[int]:
    """Return the runs of a mask down the columns. The first run is outside."""
    pixels = mask.T.ravel()
    ends = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *ends, pixels.size]).tolist()
    return [0, *runs] if pixels[0] else runs


@pytest.fixture
def record_with(tmp_path):
    """Return a record of a white object on black, with its mask in one of three forms: ``("counts")``."""
    mask = polygons_to_bitmask([np.array(OUTLINE)], 90, 120).astype(np.uint8)
    Image.fromarray(255 * mask).convert("RGB").save(tmp_path / "object.png")
    forms = {
        "polygon": [OUTLINE],
        "compressed": mask_util.encode(np.asfortranarray(mask)),
        "counts": {"size": [90, 120], "counts": counts_of(mask)},
    }

    def record(form: str, **more) -> dict:
        annotation = {"bbox": [20.0, 12.5, 101.0, 77.0], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
        annotations = [{**annotation, "segmentation": forms[form], **more}]
        return {
            "file_name": str(tmp_path / "object.png"), "height": 90, "width": 120, "image_id": 1,
            "annotations": annotations,
        }  # fmt: skip

    return record


def assert_alike(masks: torch.Tensor, others: torch.Tensor) -> None:
    """Assert that masks (N, H, W) differ only in pixels at their outline."""
    masks, others = masks.float(), others.float()
    assert masks.shape == others.shape
    assert masks.any()
    assert (others <= max_pool2d(masks, 3, 1, 1)).all()
    assert (1 - others <= max_pool2d(1 - masks, 3, 1, 1)).all()


@pytest.mark.parametrize("form", ["compressed", "counts"])
@pytest.mark.parametrize(
    "opts",
    [
        ["INPUT.RANDOM_FLIP", "none"],
        ["INPUT.RANDOM_FLIP", "horizontal"],
        ["INPUT.RANDOM_FLIP", "vertical", "INPUT.MIN_SIZE_TRAIN", "(50, 70, 200)"],
        ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "relative_range", "INPUT.CROP.SIZE", "[0.5, 0.5]"],
        ["INPUT.SCALE_RANGE_TRAIN", "(0.5, 2.0)"],
    ],
    ids=["resized", "mirrored", "upside down", "cropped", "scaled"],
)
def test_run_lengths_go_where_their_pixels_go(record_with, opts, form):
    mapper = DatasetMapper(load_config(MASK_RCNN, opts))
    for seed in range(6):
        with seeded_random(seed):
            mapped = mapper(record_with(form))
        instances, white = mapped["instances"], mapped["image"][0] > 127
        assert isinstance(instances.gt_masks, BitMasks)
        assert_alike(instances.gt_masks.tensor, white[None])
        box = BitMasks(white[None]).get_bounding_boxes().tensor
        # The expected box is the outline's. Its corners cover no whole pixel, and are enlarged up to 3 times.
        assert (instances.gt_boxes.tensor - box).abs().max() <= 4


@pytest.mark.parametrize("form", ["compressed", "counts"])
def test_run_lengths_are_learned_as_polygons_are(record_with, form):
    mapper = DatasetMapper(load_config(MASK_RCNN, []))
    found = []
    for each in ("polygon", form):
        with seeded_random(3):
            found.append(mapper(record_with(each))["instances"])
    polygons, bitmaps = (instances.gt_masks for instances in found)
    assert isinstance(polygons, PolygonMasks) and isinstance(bitmaps, BitMasks)
    boxes, classes = found[0].gt_boxes.tensor, found[0].gt_classes
    torch.testing.assert_close(found[1].gt_boxes.tensor, boxes)
    assert_alike(*(masks.crop_and_resize(boxes, 28) for masks in (polygons, bitmaps)))
    size = tuple(math.ceil(side / 32) * 8 for side in found[0].image_size)
    assert_alike(*(region_targets([masks], [classes], 3, size)[0, 1:2] for masks in (polygons, bitmaps)))


def test_masks_of_one_image_may_be_written_in_both_ways(record_with):
    """The image gets bitmaps, unless only a crowd has run lengths. Other images keep polygons."""
    mapper = DatasetMapper(load_config(MASK_RCNN, []))
    both, crowd = (record_with("polygon") for _ in range(2))
    both["annotations"] += record_with("counts")["annotations"]
    crowd["annotations"] += record_with("compressed", iscrowd=1)["annotations"]
    masks = mapper(both)["instances"].gt_masks
    assert_alike(masks.tensor[:1], masks.tensor[1:])
    assert isinstance(mapper(crowd)["instances"].gt_masks, PolygonMasks)
    assert isinstance(both["annotations"][1]["segmentation"]["counts"], list)  # the record is unchanged


def test_an_image_of_crowds_alone_is_cropped(record_with):
    mapper = DatasetMapper(load_config(MASK_RCNN, ["INPUT.CROP.ENABLED", "True"]))
    assert len(mapper(record_with("compressed", iscrowd=1))["instances"]) == 0


@pytest.mark.parametrize("config", [MASK_RCNN, "configs/Shapes/systems/cascade_mask_rcnn.yaml"])
def test_polygons_and_run_lengths_train_in_one_batch(record_with, config):
    cfg = load_config(config, [*MASKS_LEARNED, "INPUT.RANDOM_FLIP", "none"])
    mapper, model, losses = DatasetMapper(cfg), build_model(cfg), []
    for forms in (["polygon"] * 2, ["polygon", "counts"]):
        batch = [mapper(record_with(form)) for form in forms] + [mapper(record_with("counts", iscrowd=1))]
        with seeded_random(1), EventStorage():
            losses.append(model(batch))
    assert "loss_mask" in losses[0] and "loss_pixel_text" in losses[0]
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, rtol=0.05, atol=1e-3)

"""Augmentations and training batches of semantic segmentation."""

from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform
from PIL import Image
from semantic import RECIPE, load, semantic_config

from denseclip_d2.config import load_config
from denseclip_d2.data.mapper import SemanticMapper, build_mapper
from denseclip_d2.data.transforms import RandomScaleShortestEdge
from denseclip_d2.engine import Trainer
from denseclip_d2.utils.random_state import seeded_random


@pytest.mark.parametrize("size", [(683, 512), (512, 683), (3000, 300), (300, 3000), (256, 256)])
def test_images_are_scaled_as_the_recipe_scales_them(size):
    """MMSegmentation's rule: fit (2048, 512) times one factor, longer side to longer side."""
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
    """Return an image whose colors encode the labels."""
    return np.stack([labels * 13, 255 - labels * 13, labels * 7], axis=2).astype(np.uint8)


def test_labels_stay_with_the_pixels_they_label(semantic_shapes, tmp_path):
    """After scaling, cropping, flipping and padding, colors still encode the labels away from outlines."""
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
        inner[:3] = inner[-3:] = inner[:, :3] = inner[:, -3:] = False  # cropped objects may blend in
        expected = torch.from_numpy(painted(labels.numpy())).where((labels != 255)[..., None], mean)
        assert inner.float().mean() > 0.5
        # An object too thin for a label still changes the image by one or two gray levels.
        torch.testing.assert_close(
            image.permute(1, 2, 0)[inner].long(), expected[inner].long(), atol=2, rtol=0
        )
        assert (labels != 255).any()


def test_small_images_are_padded_to_the_crop_with_the_mean_and_ignored_there(semantic_shapes):
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


def test_crops_have_less_than_the_given_part_of_one_class(semantic_shapes, tmp_path):
    labels = np.zeros((256, 256), np.uint8)
    labels[:, 64:] = np.arange(192) // 48 + 1
    labels[:, 160:] = 255  # ignored pixels do not count
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


def test_colors_are_distorted_alike_in_either_order_and_labels_are_not(semantic_shapes):
    """The distortion uses hue and saturation, which depend on the channel order."""
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


def test_test_images_have_the_test_size_no_augmentation_and_no_labels(semantic_shapes):
    cfg = semantic_config(*RECIPE, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 2048)
    record = load("val")[0]
    mapped = build_mapper(cfg, is_train=False)(record)
    with Image.open(record["file_name"]) as image:
        assert (mapped["width"], mapped["height"]) == image.size
        resize = T.ResizeShortestEdge(64, 2048).get_transform(np.asarray(image))
        expected = resize.apply_image(np.asarray(image))
    np.testing.assert_array_equal(mapped["image"].permute(1, 2, 0), expected)
    assert "sem_seg" not in mapped


def assert_same(some: list[list[dict]], others: list[list[dict]]) -> None:
    for one, other in zip(some, others, strict=True):
        assert [x["file_name"] for x in one] == [x["file_name"] for x in other]
        for x, y in zip(one, other, strict=True):
            torch.testing.assert_close((x["image"], x["sem_seg"]), (y["image"], y["sem_seg"]), rtol=0, atol=0)


def test_training_batches_are_of_one_size_and_go_on_where_they_stopped(semantic_shapes):
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

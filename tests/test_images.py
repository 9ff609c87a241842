"""One reader of image files for all purposes, and the checks of images before training."""

import logging
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script
from detectron2.data import DatasetCatalog, MapDataset
from detectron2.data import DatasetMapper as Detectron2Mapper
from detectron2.data.detection_utils import read_image as detectron2_read_image
from detectron2.structures import BoxMode
from numpy.testing import assert_array_equal
from PIL import Image
from torch.utils.data import DataLoader

from denseclip_d2 import Predictor
from denseclip_d2.config import load_config
from denseclip_d2.data.caption_table import CaptionTable
from denseclip_d2.data.image_checks import check_image_files
from denseclip_d2.data.image_io import ImageError, image_size, read_image, to_bgr
from denseclip_d2.data.mapper import DatasetMapper, build_mapper
from denseclip_d2.data.semantic import load_semantic_folder, read_labels
from denseclip_d2.inference.images import model_input
from denseclip_d2.shapes.dataset import generate_shapes, register_shapes
from denseclip_d2.utils.random_state import seeded_random
from denseclip_d2.web_demo.session import Limits, read_upload

RNG = np.random.default_rng(0)
COLORS = RNG.integers(256, size=(6, 9, 3), dtype=np.uint8)
GRAY = RNG.integers(256, size=(6, 9), dtype=np.uint8)
ALPHA = RNG.integers(256, size=(6, 9), dtype=np.uint8)
SIXTEEN = RNG.integers(1 << 16, size=(6, 9), dtype=np.uint16)
FORMATS = ["RGB", "BGR", "L", "YUV-BT.601"]


def turned_by(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def with_alpha(colors: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colors, ALPHA]))


def palette(**options) -> Image.Image:
    image = Image.fromarray(COLORS).quantize(16)
    image.info.update(options)
    return image


def animation(path: Path) -> None:
    Image.fromarray(COLORS).save(path, save_all=True, append_images=[Image.fromarray(255 - COLORS)])


ORDINARY = {
    "rgb.png": lambda p: Image.fromarray(COLORS).save(p),
    "rgb.jpg": lambda p: Image.fromarray(COLORS).save(p),
    "rgb.webp": lambda p: Image.fromarray(COLORS).save(p),
    "rgb.tiff": lambda p: Image.fromarray(COLORS).save(p),
    "gray.png": lambda p: Image.fromarray(GRAY).save(p),
    "gray.jpg": lambda p: Image.fromarray(GRAY).save(p),
    "rgb_alpha.png": lambda p: with_alpha(COLORS).save(p),
    "gray_alpha.png": lambda p: with_alpha(GRAY).save(p),
    "palette.png": lambda p: palette().save(p),
    "palette_alpha.png": lambda p: palette(transparency=bytes(range(16))).save(p),
    "one_bit.png": lambda p: Image.fromarray(GRAY > 127).save(p),
    "cmyk.jpg": lambda p: Image.fromarray(COLORS).convert("CMYK").save(p),
    "animated.gif": animation,
    "animated.png": animation,
    "exif.jpg": lambda p: Image.fromarray(COLORS).save(p, exif=turned_by(6)),
    "exif.png": lambda p: Image.fromarray(COLORS).save(p, exif=turned_by(7)),
    "exif.webp": lambda p: Image.fromarray(COLORS).save(p, exif=turned_by(3)),
    "broken_exif.jpg": lambda p: Image.fromarray(COLORS).save(p, exif=b"Exif\0\0no EXIF at all"),
}  # fmt: skip


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("name", ORDINARY)
def test_images_of_eight_bits_are_what_detectron2_reads(tmp_path, name, pixel_format):
    ORDINARY[name](tmp_path / name)
    expected = detectron2_read_image(str(tmp_path / name), pixel_format)
    image = read_image(tmp_path / name, pixel_format)
    assert (image.dtype, image.shape) == (expected.dtype, expected.shape)
    assert_array_equal(image, expected)
    height, width = image.shape[:2]
    assert image_size(tmp_path / name) == (width, height)
    check_image_files(["x"], [{"file_name": str(tmp_path / name), "width": width, "height": height}])


def write_tiff(path: Path, content: bytes, bits: int, *, byte_order: str = "<", **tags: int) -> None:
    """Write a TIFF of 6 rows of 9 pixels with one channel, of kinds that Pillow does not write."""
    entries = {
        256: 9, 257: 6, 258: bits, 259: 1, 262: tags.get("photometric", 1), 273: 8, 277: 1, 278: 6,
        279: len(content), 339: tags.get("sample_format", 1),
    }  # fmt: skip
    directory = struct.pack(byte_order + "H", len(entries))
    for tag, value in entries.items():
        directory += struct.pack(byte_order + "HHII", tag, 4, 1, value)
    signature = b"II*\0" if byte_order == "<" else b"MM\0*"
    offset = struct.pack(byte_order + "I", 8 + len(content))
    path.write_bytes(signature + offset + content + directory + bytes(4))


def twelve_bits(values: np.ndarray) -> bytes:
    rows = ["".join(f"{value:012b}" for value in row) + "0000" for row in values.tolist()]
    return bytes(int(row[i : i + 8], 2) for row in rows for i in range(0, len(row), 8))


DEEP = {
    "gray.png": lambda p: Image.fromarray(SIXTEEN).save(p),
    "gray.tiff": lambda p: Image.fromarray(SIXTEEN).save(p),
    "gray.jp2": lambda p: Image.fromarray(SIXTEEN).save(p, irreversible=False),
    "gray.pgm": lambda p: Image.fromarray(SIXTEEN).save(p),
    "big_endian.tiff": lambda p: write_tiff(p, SIXTEEN.astype(">u2").tobytes(), 16, byte_order=">"),
    "negative.tiff": lambda p: write_tiff(p, (~SIXTEEN).tobytes(), 16, photometric=0),
    "twelve_bits.tiff": lambda p: write_tiff(p, twelve_bits(SIXTEEN >> 4), 12),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_of_sixteen_bits_the_upper_eight_are_taken(tmp_path, name, caplog):
    path = tmp_path / name
    DEEP[name](path)
    assert_array_equal(read_image(path, "L")[..., 0], SIXTEEN // 256)
    for pixel_format in ("RGB", "BGR"):
        assert_array_equal(read_image(path, pixel_format), np.dstack([SIXTEEN // 256] * 3))
    with caplog.at_level(logging.WARNING):
        check_image_files(["x"], [{"file_name": str(path), "width": 9, "height": 6}])
    assert f"1 images have one channel of 16 bits, such as {path}." in caplog.text


def test_sixteen_bits_of_one_color_are_those_of_three(tmp_path):
    """Pillow keeps the upper 8 bits of several channels. A gray image must not be darker."""
    import cv2

    cv2.imwrite(str(tmp_path / "color.png"), np.dstack([SIXTEEN] * 3))
    Image.fromarray(SIXTEEN).save(tmp_path / "gray.png")
    assert_array_equal(read_image(tmp_path / "gray.png"), read_image(tmp_path / "color.png"))


UNKNOWN_WHITE = {
    "float.tiff": lambda p: Image.fromarray(GRAY.astype(np.float32) / 255).save(p),
    "integers.tiff": lambda p: Image.fromarray(SIXTEEN.astype(np.int32)).save(p),
    "signed.tiff": lambda p: write_tiff(p, (SIXTEEN // 2).tobytes(), 16, sample_format=2),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN_WHITE)
def test_pixels_whose_white_is_unknown_are_refused_everywhere(tmp_path, name):
    path = tmp_path / name
    UNKNOWN_WHITE[name](path)
    (tmp_path / "captions.tsv").write_text(f"filepath\ttitle\n{name}\tan image\n", encoding="utf-8")
    record = {"file_name": str(path), "width": 9, "height": 6}
    mapper = DatasetMapper(load_config("configs/Shapes/denseclip_retinanet_tiny.yaml", []), is_train=False)
    for read in (
        lambda: read_image(path),
        lambda: mapper(record),
        lambda: check_image_files(["x"], [record]),
        lambda: CaptionTable(tmp_path / "captions.tsv")[0],
    ):
        with pytest.raises(ImageError, match=f"(?s){path} has .*white is not known.*Save such images"):
            read()
    with pytest.raises(ValueError, match=f"^{name}: the image has .*Save such images with 8 or 16 bits"):
        read_upload(str(path), Limits())
    with Image.open(path) as image, pytest.raises(ImageError, match="^the image has"):
        to_bgr(image)


@pytest.mark.parametrize("ext", ["jpg", "png", "webp", "avif", "tiff"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_an_image_is_upright_once_whatever_the_format(tmp_path, ext, orientation):
    """Pillow rotates TIFFs automatically."""
    colors = np.zeros((48, 64, 3), np.uint8)
    colors[:16, :16] = 255
    exif = turned_by(orientation)
    Image.fromarray(colors).save(tmp_path / f"x.{ext}", exif=exif, quality=95)
    left_or_top = {1: "y0x0", 2: "y0x1", 3: "y1x1", 4: "y1x0", 5: "y0x0", 6: "y0x1", 7: "y1x1", 8: "y1x0"}
    image = read_image(tmp_path / f"x.{ext}", "L")[..., 0]
    bottom, right = (int(left_or_top[orientation][i]) for i in (1, 3))
    corner = image[-16:, :] if bottom else image[:16, :]
    corner = corner[:, -16:] if right else corner[:, :16]
    assert corner.mean() > 230 and image.mean() < 40
    assert image.shape == ((64, 48) if orientation >= 5 else (48, 64))
    assert image_size(tmp_path / f"x.{ext}") == image.shape[::-1]
    record = {"file_name": str(tmp_path / f"x.{ext}"), "width": image.shape[1], "height": image.shape[0]}
    check_image_files(["x"], [record])


def test_an_orientation_behind_a_pngs_pixels_counts(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "x.png", exif=turned_by(6))
    content = (tmp_path / "x.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    parts = content[:start], content[end:last], content[start:end], content[last:]
    (tmp_path / "x.png").write_bytes(b"".join(parts))
    assert read_image(tmp_path / "x.png").shape == (9, 6, 3)
    assert image_size(tmp_path / "x.png") == (6, 9)
    check_image_files(["x"], [{"file_name": str(tmp_path / "x.png"), "width": 6, "height": 9}])


def test_labels_are_turned_as_their_image_is(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "x.png", exif=turned_by(6))
    assert_array_equal(read_labels(str(tmp_path / "x.png")), np.rot90(GRAY, -1))


@pytest.mark.parametrize("ext", ["jpg", "png", "tiff"])
def test_an_annotation_of_the_unturned_image_is_told_as_that(tmp_path, ext):
    path = tmp_path / f"x.{ext}"
    Image.fromarray(COLORS).save(path, exif=turned_by(6))
    said = (
        r"x\.\w+ is 6x9 turned by its EXIF orientation 6, and annotated as 9x6 .*\n.*Remove the orientation"
    )
    with pytest.raises(ImageError, match=said):
        check_image_files(["x"], [{"file_name": str(path), "width": 9, "height": 6}])
    with pytest.raises(ImageError, match=r"is 6x9 and annotated as 9x5 .*\nCorrect width and height"):
        check_image_files(["x"], [{"file_name": str(path), "width": 9, "height": 5}])


def test_faults_are_listed_by_what_to_do_about_them(tmp_path):
    records = [{"file_name": str(tmp_path / f"{i}.png"), "width": 9, "height": 6} for i in range(30)]
    for record in records[15:28]:
        Image.fromarray(COLORS[:, :8]).save(record["file_name"])
    Path(records[28]["file_name"]).write_bytes(b"a photo of another kind")
    Image.fromarray(COLORS).save(records[29]["file_name"])
    with pytest.raises(ImageError) as caught:
        check_image_files(["x"], records)
    lines = str(caught.value).splitlines()
    assert lines[0] == "29 of 30 images of x cannot be used:"
    assert lines[1] == f"  {records[0]['file_name']} is missing"
    assert [line.strip() for line in lines[11::12]] == ["and 5 more", "and 3 more"]
    assert lines[12].startswith("Correct the names of missing files")
    assert lines[24].startswith("Correct width and height")
    assert lines[25].endswith("28.png is not an image that Pillow reads here")
    assert lines[26].startswith("Convert HEIC")


@pytest.mark.parametrize("damage", ["zeros", "one bit"])
def test_a_png_rotten_in_its_middle_is_seen(tmp_path, damage):
    path = tmp_path / "x.png"
    Image.fromarray(RNG.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64) if damage == "zeros" else content[middle : middle + 64]
    content[middle] ^= 0 if damage == "zeros" else 1
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"x.png is broken or truncated .*checksum.*\nFetch or save such"):
        check_image_files(["x"], [{"file_name": str(path), "width": 64, "height": 64}])


def test_a_png_without_its_last_bytes_alone_still_serves(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(content[:-12])
    check_image_files(["x"], [{"file_name": str(tmp_path / "x.png"), "width": 9, "height": 6}])
    assert_array_equal(read_image(tmp_path / "x.png", "RGB"), COLORS)


def test_an_image_that_breaks_in_training_is_named_by_the_worker(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(RNG.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    mapper = DatasetMapper(load_config("configs/Shapes/denseclip_retinanet_tiny.yaml", []), is_train=False)
    records = [{"file_name": str(path), "width": 64, "height": 64}]
    loader = DataLoader(MapDataset(records, mapper), num_workers=1, collate_fn=list)
    with pytest.raises(ValueError, match=f"{path} is broken or truncated"):
        next(iter(loader))


def test_more_pixels_than_pillows_limit_are_told_with_the_way_to_raise_it(tmp_path, monkeypatch):
    path, record = tmp_path / "x.png", {"width": 9, "height": 6}
    record["file_name"] = str(path)
    Image.fromarray(COLORS).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    said = f"(?s){path} has more than 4e-05 megapixels.*variable DENSECLIP_D2_MAX_MEGAPIXELS to a higher"
    for read in (lambda: read_image(path), lambda: check_image_files(["x"], [record])):
        with pytest.raises(ImageError, match=said) as caught:
            read()
        assert "broken" not in str(caught.value)
    monkeypatch.setenv("DENSECLIP_D2_MAX_MEGAPIXELS", "many")
    with pytest.raises(ImageError, match="MAX_MEGAPIXELS is 'many'. Set it to a number"):
        read_image(path)
    monkeypatch.setenv("DENSECLIP_D2_MAX_MEGAPIXELS", "0.0001")
    check_image_files(["x"], [record])
    assert_array_equal(read_image(path), COLORS[..., ::-1])


def test_an_image_beside_its_heic_has_its_label(tmp_path, caplog):
    for folder, names in (("images", ["a.heic", "a.jpg", "b.HEIC"]), ("labels", ["a.png", "b.png"])):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.fromarray(GRAY).save(tmp_path / folder / name, format="png")
    first, second = load_semantic_folder(tmp_path / "images", tmp_path / "labels")
    assert [Path(x["file_name"]).name for x in (first, second)] == ["a.jpg", "b.HEIC"]
    (tmp_path / "images/b.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ImageError, match="(?s)1 of 2 .*b.HEIC is not an image.*Convert HEIC"):
        check_image_files(["x"], [first, second])


def test_a_table_of_captions_reads_as_the_predictor_does(tmp_path):
    Image.fromarray(SIXTEEN).save(tmp_path / "deep.png")
    Image.fromarray(COLORS).save(tmp_path / "turned.png", exif=turned_by(6))
    rows = "filepath\ttitle\ndeep.png\ta\nturned.png\tb\n"
    (tmp_path / "captions.tsv").write_text(rows, encoding="utf-8")
    for (image, _), name in zip(CaptionTable(tmp_path / "captions.tsv"), ("deep", "turned"), strict=True):
        assert image.mode == "RGB"
        assert_array_equal(image, read_image(tmp_path / f"{name}.png", "RGB"))


def read_in_example(path: Path) -> np.ndarray:
    """Read by ``examples/detect.py``, which does not import this package."""
    return np.asarray(load_script("examples/detect.py").read(str(path)))


@pytest.mark.parametrize("name", [*ORDINARY, *(f"deep_{name}" for name in DEEP)])
def test_the_example_reads_as_the_predictor_does(tmp_path, name):
    (ORDINARY.get(name) or DEEP[name.removeprefix("deep_")])(tmp_path / name)
    assert_array_equal(read_in_example(tmp_path / name), read_image(tmp_path / name, "RGB"))


@pytest.mark.parametrize("name", UNKNOWN_WHITE)
def test_the_example_refuses_what_the_predictor_refuses(tmp_path, name):
    UNKNOWN_WHITE[name](tmp_path / name)
    with pytest.raises(SystemExit, match=f"error: .*{name} .*Save it with 8 or 16 bits"):
        read_in_example(tmp_path / name)


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_the_predictor_sees_what_evaluation_sees(small_shapes, pixel_format):
    predictor = Predictor.from_zoo("Shapes/denseclip_retinanet_tiny.yaml")
    mapper = DatasetMapper(predictor.cfg, is_train=False)
    mapper.image_format = pixel_format
    for record in DatasetCatalog.get(small_shapes[2]):
        expected = mapper(record)["image"].float()
        seen = model_input(record["file_name"], predictor.aug, pixel_format)
        assert torch.equal(seen["image"], expected)


# Mappers override Detectron2's calls because of the reader


@pytest.mark.parametrize("is_train", [True, False])
def test_the_mapper_gives_what_detectron2s_gives(small_shapes, is_train):
    """Boxes, masks, label maps and proposals with the same augmentation."""
    root, name, _ = small_shapes
    config = "configs/Shapes/denseclip_mask_rcnn_tiny.yaml"
    mapper = DatasetMapper(load_config(config, ["DATASETS.TRAIN", str((name,))]), is_train)
    mapper.proposal_topk = 5
    theirs = partial(Detectron2Mapper.__call__, mapper)
    for record in DatasetCatalog.get(name):
        boxes = np.array([annotation["bbox"] for annotation in record["annotations"]]).reshape(-1, 4)
        record["proposal_boxes"], record["proposal_bbox_mode"] = boxes, BoxMode.XYWH_ABS
        record["proposal_objectness_logits"] = np.arange(len(boxes), dtype=np.float32)
        record["sem_seg_file_name"] = str(root / "labels/train" / Path(record["file_name"]).name)
        seen, expected = seeded(mapper, record), seeded(theirs, record)
        assert seen.keys() == expected.keys()
        for key in ("image", "sem_seg"):
            assert torch.equal(seen[key], expected[key])
        proposals, others = seen["proposals"], expected["proposals"]
        assert torch.equal(proposals.proposal_boxes.tensor, others.proposal_boxes.tensor)
        assert torch.equal(proposals.objectness_logits, others.objectness_logits)
        if is_train:
            found, others = seen["instances"], expected["instances"]
            assert torch.equal(found.gt_boxes.tensor, others.gt_boxes.tensor)
            assert torch.equal(found.gt_classes, others.gt_classes)
            assert found.has("gt_masks") == others.has("gt_masks") == bool(len(found))
            masks = zip(found.gt_masks, others.gt_masks, strict=True) if len(found) else ()
            for mask, other in masks:
                assert_array_equal(mask, other)


def test_the_mapper_of_panoptic_deeplab_gives_what_detectron2s_gives(tmp_path, catalogs, panopticapi):
    from detectron2.projects.panoptic_deeplab import PanopticDeeplabDatasetMapper

    generate_shapes(tmp_path / "shapes", num_train=2, num_val=1, seed=3)
    register_shapes(tmp_path / "shapes")
    cfg = load_config("configs/Shapes/systems/panoptic_deeplab.yaml", [])
    mapper = build_mapper(cfg)
    theirs = PanopticDeeplabDatasetMapper(
        augmentations=mapper.augmentations.augs,
        image_format=cfg.INPUT.FORMAT,
        panoptic_target_generator=mapper.panoptic_target_generator,
    )
    for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0]):
        seen, expected = seeded(mapper, record), seeded(theirs, record)
        assert seen.keys() == expected.keys()
        tensors = [key for key, value in expected.items() if isinstance(value, torch.Tensor)]
        assert {"image", "sem_seg", "center", "offset"} <= {*tensors}
        for key in tensors:
            assert torch.equal(seen[key], expected[key]), key


def seeded(call: Callable[[dict], dict], record: dict) -> dict:
    with seeded_random(1, 2):
        return call(record)

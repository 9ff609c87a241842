"""Tests of ``datasets/prepare_ade20k.py``."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import load_script
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin import register_all_ade20k
from PIL import Image
from semantic import load, semantic_config

from denseclip_d2.data.mapper import build_mapper


@pytest.fixture
def prepare():
    return load_script("datasets/prepare_ade20k.py")


@pytest.fixture
def ade20k(tmp_path) -> Path:
    """Write the downloaded dataset with three training and two validation images."""
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
    """Return the script's output files with their modification times."""
    return {path: path.stat().st_mtime_ns for path in (root / "annotations_detectron2").rglob("*.*")}


def test_detectron2_reads_prepared_ade20k(prepare, ade20k, catalogs):
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


def test_preparing_again_writes_only_missing_files(prepare, ade20k, capsys):
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


def test_an_interrupted_preparation_leaves_no_partial_file(prepare, ade20k, monkeypatch):
    def interrupt(image, file, *args):
        file.write(b"\x89PNG")
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
    else:  # the dataset's other edition has colored labels
        Image.new("RGB", (40, 30)).save(label)


@pytest.mark.parametrize("fault", ["have no counterpart", "is broken", "other labels", "other labels than"])
def test_other_datasets_are_refused_by_name(prepare, ade20k, fault):
    spoil(ade20k, fault)
    with pytest.raises(SystemExit, match=f"error: .*ADEChallengeData2016.*{fault}"):
        prepare.main(["--root", str(ade20k), "--allow-partial"])


def test_an_incomplete_ade20k_needs_allow_partial(prepare, ade20k):
    with pytest.raises(SystemExit, match="has 3 of ADE20K's 20210 images .*--allow-partial"):
        prepare.main(["--root", str(ade20k)])


def test_without_ade20k_errors_say_how_to_get_it(prepare, tmp_path, monkeypatch):
    root = tmp_path / "new" / "ADEChallengeData2016"
    with pytest.raises(SystemExit, match="--zip FILE or --download"):
        prepare.main(["--root", str(root)])
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(b"PK\x03\x04")
    with pytest.raises(SystemExit, match="damaged.zip is damaged"):
        prepare.main(["--root", str(root), "--zip", str(damaged)])
    monkeypatch.setattr(prepare, "URL", "http://127.0.0.1:1/ADEChallengeData2016.zip")
    with pytest.raises(SystemExit, match="could not be downloaded to .*refused.*give --zip FILE"):
        prepare.main(["--root", str(root), "--download"])
    assert not list(root.parent.iterdir())


def test_missing_labels_are_refused_with_the_name_of_the_script(monkeypatch, tmp_path):
    metadata = MetadataCatalog.get("ade20k_sem_seg_train")
    monkeypatch.setitem(vars(metadata), "sem_seg_root", str(tmp_path / "none"))
    monkeypatch.setitem(vars(metadata), "image_root", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"has no folder .*none\. .*prepare_ade20k.py"):
        load("ade20k_sem_seg_train")

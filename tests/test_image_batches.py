"""Images, folders, videos and streams through ``Predictor`` and ``tools/demo.py``."""

import json
import os
import signal
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO
from test_engine import run_tool

from denseclip_d2 import Predictor
from denseclip_d2.data.image_io import read_image
from denseclip_d2.engine.setup import output_folder
from denseclip_d2.shapes.dataset import CLASS_NAMES
from denseclip_d2.visualization import Source, camera, draw_sources, find_sources, of_dataset
from denseclip_d2.visualization.gallery import check_outputs
from denseclip_d2.visualization.video import read_frames, write_video

RETINANET = "Shapes/denseclip_retinanet_tiny.yaml"
NAMES = ["red solid circle", "blue solid circle"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_zoo(RETINANET)


@pytest.fixture
def paths(small_shapes) -> list[Path]:
    return sorted(small_shapes[0].glob("val/*.png"))


def make_video(path: Path, frames: int, fps: float = 10, size: tuple[int, int] = (160, 120)) -> Path:
    """Write a video whose frames differ in brightness."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    for i in range(frames):
        writer.write(np.full((*size[::-1], 3), 2 * i, np.uint8))
    writer.release()
    return path


def same(one: dict, other: dict) -> None:
    first, second = (x["instances"] for x in (one, other))
    assert len(first) == len(second) > 0
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(first.pred_boxes.tensor, second.pred_boxes.tensor, rtol=1e-3, atol=0.05)
    torch.testing.assert_close(one["score_maps"], other["score_maps"], rtol=1e-3, atol=1e-4)


def test_lists_and_generators_have_the_outputs_of_single_images(predictor, paths, monkeypatch):
    """Images of one size form a batch, and each keeps its own names."""
    whole = read_image(paths[0])
    images = [paths[0], whole[:96, :128], whole, whole[:96, -128:], paths[1]]
    alone = [predictor(image, NAMES) for image in images]
    sizes = []
    monkeypatch.setattr(predictor, "batch_size", 4)
    hook = predictor.model.register_forward_pre_hook(lambda model, args: sizes.append(len(args[0])))
    listed, generated = predictor(images, NAMES), predictor((image for image in images), NAMES)
    assert isinstance(listed, list) and not isinstance(generated, list)
    for outputs in (listed, list(generated)):
        for one, other in zip(alone, outputs, strict=True):
            same(one, other)
    assert sizes == [2, 2, 1] * 2
    first, second = predictor([(paths[0], NAMES[1:]), (paths[1], [])])
    torch.testing.assert_close(first["score_maps"], alone[0]["score_maps"][1:], rtol=1e-3, atol=1e-4)
    assert "score_maps" not in second
    hook.remove()


def test_a_generator_may_be_endless(predictor):
    taken = []
    endless = predictor(np.full((64, 64, 3), i % 256, np.uint8) for i in count() if not taken.append(i))
    next(endless), next(endless)
    assert len(taken) == 2


def test_batches_shrink_if_memory_runs_out(predictor, paths, monkeypatch, caplog):
    whole = read_image(paths[0])
    images = [whole, whole[::-1], whole[:, ::-1], whole[::-1, ::-1]]
    alone, predict = [predictor(image) for image in images], predictor._predict

    def short_of_memory(inputs):
        if len(inputs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(inputs)

    monkeypatch.setattr(predictor, "batch_size", 4)
    monkeypatch.setattr(predictor, "_predict", short_of_memory)
    for one, other in zip(alone, predictor(images), strict=True):
        assert torch.equal(one["instances"].scores, other["instances"].scores)
    assert predictor.batch_size == 1
    assert "Memory is too small for batches of 4 images; now 2" in caplog.text
    monkeypatch.setattr(predictor, "_predict", lambda inputs: (_ for _ in ()).throw(MemoryError("none left")))
    with pytest.raises(MemoryError, match="none left"):
        predictor(images)


def test_a_broken_image_is_named_and_can_be_skipped(predictor, paths, tmp_path, caplog):
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{broken} is broken or truncated"):
        predictor([paths[0], broken])
    with pytest.raises(FileNotFoundError, match="nowhere.png: there is no such file"):
        predictor("nowhere.png")
    first, second, third = predictor.stream([paths[0], broken, paths[1]], skip_broken=True)
    assert (len(first), second, len(third)) == (1, {}, 1)
    assert f"Skipped: {broken} is broken" in caplog.text


def test_files_folders_and_globs_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (
        "a/x.jpg",
        "a/b/y.PNG",
        "a/b/notes.txt",
        "a/.hidden/z.jpg",
        "a/._x.jpg",
        "v.mp4",
        "c[1].png",
    ):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()

    def names(*inputs: str) -> list[str]:
        return [source.output for source in find_sources(inputs)]

    assert names("a") == names(str(tmp_path / "a")) == ["b/y.png", "x.png"]
    assert names("*.mp4", "c[1].png", "a/**/*.PNG") == ["v.mp4", "c[1].png", "y.png"]
    for nothing, message in (
        ("*.gif", "no such file"),
        ("no.jpg", "no such file"),
        ("a/.hidden/.x", "no such"),
    ):
        with pytest.raises(FileNotFoundError, match=f"--input .*: there is {message}"):
            names(nothing)
    Path("empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image and no video in it"):
        names("empty")


def test_files_are_overwritten_only_on_request(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg")
    (tmp_path / "out").mkdir()
    sources = find_sources([str(tmp_path / "x.png")])
    check_outputs(sources, str(tmp_path / "out"), overwrite=False)
    with pytest.raises(FileExistsError, match="is an input"):
        check_outputs(sources, str(tmp_path), overwrite=True)
    with pytest.raises(ValueError, match=r"2 output files would have the same name 'x\.png'"):
        check_outputs(find_sources([str(tmp_path / "x.*")]), str(tmp_path / "out"), overwrite=True)
    (tmp_path / "out/detections.json").touch()
    with pytest.raises(FileExistsError, match="detections.json exists. .*add --overwrite"):
        check_outputs(sources, str(tmp_path / "out"), overwrite=False)
    check_outputs(sources, str(tmp_path / "out"), overwrite=True)


def test_a_video_keeps_its_number_of_frames(tmp_path):
    video = make_video(tmp_path / "clip.mp4", 100)
    done = run_tool(
        "demo.py", "--input", video, "--output", tmp_path / "out", "--score-map", *NAMES,
        datasets=tmp_path, config="denseclip_d2/model_zoo/weights/denseclip_retinanet_tiny.safetensors",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "100/100" in done.stderr  # progress
    written = tmp_path / "out/clip.mp4"
    capture = cv2.VideoCapture(str(written))
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    frames = list(read_frames(str(written)))
    assert len(frames) == 100
    assert frames[0].shape == (360, 3 * 480, 3)  # detections and two score maps
    found = json.loads((tmp_path / "out/detections.json").read_text())
    assert [image["frame"] for image in found["images"]] == [*range(100)]
    assert {image["file_name"] for image in found["images"]} == {str(video)}
    assert not list((tmp_path / "out").glob(".*"))
    assert not (tmp_path / "out/overview.png").exists()


def test_broken_files_of_a_folder_are_skipped(tmp_path, paths):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in paths[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    Image.open(paths[2]).convert("RGB").save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:2000])
    (folder / "no.mp4").write_bytes(b"no video")
    arguments = ("--input", folder, "--output", tmp_path / "out")
    zoo = "denseclip_d2/model_zoo/weights/denseclip_retinanet_tiny.safetensors"
    done = run_tool("demo.py", *arguments, datasets=tmp_path, config=zoo)
    assert done.returncode == 3, done.stderr[-3000:]
    assert f"Skipped: {folder}/cut.jpg is broken or truncated (image file is truncated" in done.stderr
    assert f"Skipped: {folder}/no.mp4 cannot be read as a video." in done.stderr
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted([*(path.name for path in paths[:2]), "detections.json", "overview.png"])
    again = run_tool("demo.py", *arguments, datasets=tmp_path, config=zoo)
    assert again.returncode == 1
    assert "exists. Choose another --output, or add --overwrite." in again.stderr


@pytest.mark.parametrize(("source", "folder"), [("--input", "new/out"), ("--camera", "kept")])
def test_a_run_without_images_writes_nothing(tmp_path, source, folder):
    """Neither a file, which would stop the next run, nor a new folder."""
    nothing = tmp_path / "empty.mp4"
    nothing.touch()
    zoo = "denseclip_d2/model_zoo/weights/denseclip_retinanet_tiny.safetensors"
    (tmp_path / "kept").mkdir()
    done = run_tool("demo.py", source, nothing, "--output", tmp_path / folder, datasets=tmp_path, config=zoo)
    assert done.returncode == 1, done.stderr[-3000:]
    assert f"Skipped: {nothing}" in done.stderr
    assert f"No image could be read. Nothing is written to {tmp_path / folder}" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty.mp4", "kept"]


def test_a_failed_run_removes_its_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="weights"), output_folder(str(tmp_path / "a/b"), "--output"):
        raise ValueError("no weights")
    assert not [*tmp_path.iterdir()]
    with output_folder(str(tmp_path / "a/b"), "--output"):
        (tmp_path / "a/b/x").touch()
    assert (tmp_path / "a/b/x").exists()


def test_images_that_pillow_cannot_read_are_named(tmp_path, predictor):
    """Even beside a JPEG of the same name, whose output is written."""
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir(), out.mkdir()
    Image.new("RGB", (64, 48)).save(folder / "x.jpg")
    (folder / "x.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    sources = find_sources([str(folder)])
    check_outputs(sources, str(out), overwrite=False)
    outcome = draw_sources(predictor, sources, str(out))
    assert outcome.seen == 1
    (error,) = outcome.errors
    assert error.startswith(f"{folder / 'x.HEIC'} is not an image that Pillow reads here. Convert HEIC")
    assert sorted(path.name for path in out.iterdir()) == ["detections.json", "overview.png", "x.png"]


def test_images_of_a_dataset_keep_their_folders(tmp_path, catalogs):
    """Like images of a folder. No output is outside the output folder."""
    names = ["a/1.png", "./b/1.png", "b/../b/c/2.png"]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    records = [{"file_name": f"{tmp_path}/images/{name}", "height": 8, "width": 8} for name in names]
    DatasetCatalog.register("nested", lambda: records)
    outputs = [source.output for source in of_dataset("nested", 3)]
    assert outputs == ["a/1.png", "b/1.png", "b/c/2.png"]
    assert [*map(str.lower, outputs)] == [x.output for x in find_sources([str(tmp_path / "images")])]
    assert [source.output for source in of_dataset("nested", 1)] == outputs[:1]
    check_outputs(of_dataset("nested", 3), str(tmp_path / "out"), overwrite=False)


def test_a_truncated_video_is_named_and_its_frames_are_kept(tmp_path, predictor):
    video = make_video(tmp_path / "whole.avi", 60)
    cut = tmp_path / "cut.avi"
    content = video.read_bytes()
    cut.write_bytes(content[: content.index(b"movi") + len(content) // 4])
    out = tmp_path / "out"
    out.mkdir()
    outcome = draw_sources(predictor, [Source(str(cut), "cut", "video")], str(out))
    assert len(outcome.errors) == 1 and "cut.avi breaks off after" in outcome.errors[0]
    assert 0 < outcome.seen < 60
    assert len(list(read_frames(str(out / "cut.mp4")))) == outcome.seen


def test_an_interrupted_video_leaves_no_file(tmp_path):
    def frames():
        yield np.zeros((64, 64, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "x.mp4", frames(), 10)
    assert not list(tmp_path.iterdir())


def test_a_stream_ends_after_count_frames(tmp_path, predictor):
    video = make_video(tmp_path / "stream.avi", 30)
    out = tmp_path / "out"
    out.mkdir()
    outcome = draw_sources(predictor, [camera(str(video))], str(out), count=7)
    assert outcome == (7, [])
    assert len(list(read_frames(str(out / "camera.mp4")))) == 7


def test_detections_are_a_coco_file_with_the_datasets_ids(tmp_path, small_shapes, monkeypatch):
    """With masks. COCO's evaluation reads the file."""
    name = small_shapes[2]
    predictor = Predictor.from_zoo("Shapes/denseclip_mask_rcnn_tiny.yaml")
    sources = of_dataset(name, 3)
    outcome = draw_sources(predictor, sources, str(tmp_path), dataset=name, names=NAMES)
    assert outcome == (3, [])
    truth = COCO(MetadataCatalog.get(name).json_file)
    found = COCO(tmp_path / "detections.json")
    assert found.getImgIds() == [source.record["image_id"] for source in sources]
    assert found.cats.keys() == truth.cats.keys()
    assert [c["name"] for c in found.loadCats(found.getCatIds())] == list(CLASS_NAMES)
    best = max(found.loadAnns(found.getAnnIds(found.getImgIds()[0])), key=lambda a: a["score"])
    assert best["area"] == found.annToMask(best).sum() > 0
    truth.loadRes([*found.anns.values()])
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        *(f"{Path(source.path).stem}.png" for source in sources), "overview.png",
    ]  # fmt: skip


def test_label_maps_become_one_annotation_per_class(tmp_path, paths):
    predictor = Predictor.from_zoo("Shapes/denseclip_semantic_fpn_tiny.yaml")
    draw_sources(predictor, find_sources([str(paths[0])]), str(tmp_path))
    found = COCO(tmp_path / "detections.json")
    labels = predictor(paths[0])["sem_seg"].argmax(0).numpy()
    assert {a["category_id"] for a in found.anns.values()} == set(np.unique(labels).tolist())
    for annotation in found.anns.values():
        assert np.array_equal(found.annToMask(annotation), labels == annotation["category_id"])


def test_ctrl_c_ends_only_the_stream(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    frames = read_frames(str(make_video(tmp_path / "stream.avi", 30)), live=True)
    next(frames)
    os.kill(os.getpid(), signal.SIGINT)
    assert not list(frames)
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(ValueError, match="there is no such camera, or another program uses it"):
        next(read_frames(str(tmp_path / "none.avi"), live=True))

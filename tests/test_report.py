"""The report of a training: its inputs, metrics and page, and what it must not do."""

import json
import math
import runpy
import shutil
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image
from pycocotools import mask as mask_util
from test_coco_eval import by_pycocotools, scene
from test_engine import final_metrics
from torch.testing import assert_close

from denseclip_d2.config import load_config
from denseclip_d2.data import register_semantic_folder
from denseclip_d2.engine import Trainer
from denseclip_d2.engine.run_record import read_starts, record_evaluation
from denseclip_d2.report import page, report_training, write_report
from denseclip_d2.report.charts import MAX_POINTS, line_chart
from denseclip_d2.report.detections import DetectionResults, read_detections
from denseclip_d2.report.images import SIZES, best_and_worst, encoded
from denseclip_d2.report.labels import read_labeled
from denseclip_d2.report.run import read_records, read_run
from denseclip_d2.report.sections import box_section, number
from denseclip_d2.shapes.dataset import CLASS_NAMES, SEMANTIC_CLASS_NAMES, generate_shapes

KINDS = ("denseclip_retinanet", "denseclip_mask_rcnn", "denseclip_semantic_fpn", "clip_semantic_fpn")
EVIL = "<script>alert('$x_1$ & \"y\"')</script>"
CONFIG = "configs/Shapes/denseclip_retinanet_tiny.yaml"
MAX_BYTES = 5_000_000


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the names of four small datasets. The first class has a name with HTML."""
    root = tmp_path_factory.mktemp("data")
    generate_shapes(root, num_train=4, num_val=6, seed=3)
    for split in ("train", "val"):
        path = root / f"annotations/instances_{split}.json"
        content = json.loads(path.read_text())
        content["categories"][0]["name"] = EVIL
        path.write_text(json.dumps(content))
        register_coco_instances(f"report_{split}", {}, str(path), str(root / split))
        names = [EVIL if name == CLASS_NAMES[0] else name for name in SEMANTIC_CLASS_NAMES]
        register_semantic_folder(f"report_labels_{split}", root / split, root / "labels" / split, names)
    yield
    for name in ("report", "report_labels"):
        for split in ("train", "val"):
            DatasetCatalog.remove(f"{name}_{split}")
            MetadataCatalog.remove(f"{name}_{split}")


def train(kind: str, output: Path, *opts) -> None:
    """Train for two iterations from the zoo's model, or from the counterpart without language."""
    labels = "labels_" if "semantic" in kind else ""
    own = SEMANTIC_CLASS_NAMES if labels else CLASS_NAMES
    values = {
        "DATASETS.TRAIN": (f"report_{labels}train",), "DATASETS.TEST": (f"report_{labels}val",),
        "DATALOADER.NUM_WORKERS": 0, "SOLVER.MAX_ITER": 2, "SOLVER.IMS_PER_BATCH": 2,
        "OUTPUT_DIR": str(output), "MODEL.DENSECLIP.CLASS_NAMES": tuple(own), "SOLVER.BASE_LR": 1e-6,
    }  # fmt: skip
    if kind.startswith("denseclip"):
        values["MODEL.WEIGHTS"] = f"denseclip://Shapes/{kind}_tiny.yaml"
    options = [x for pair in values.items() for x in pair]
    cfg = load_config(f"configs/Shapes/{kind}_tiny.yaml", [*options, *opts])
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    (output / "config.yaml").write_text(cfg.dump())


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Return the OUTPUT_DIR of a training of a kind, with its report."""

    @cache
    def output_of(kind: str) -> Path:
        output = tmp_path_factory.mktemp(kind) / "<i>run & run"
        train(kind, output)
        write_report(output)
        return output

    return output_of


@pytest.fixture(scope="module", params=KINDS)
def run(request, trained) -> Path:
    return trained(request.param)


@pytest.fixture
def detector(trained, tmp_path) -> Path:
    """Copy a detector's OUTPUT_DIR without its report."""
    output = tmp_path / "run"
    shutil.copytree(trained("denseclip_retinanet"), output)
    (output / "report.html").unlink()
    return output


class Page(HTMLParser):
    """Collect what a page loads and runs, and its visible text."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data):
        self.text += data


# Content of the page


def test_the_figures_are_those_of_the_evaluation(run):
    metrics, shown = final_metrics(run), Page(run / "report.html").text
    main = [
        key for key in ("bbox/AP", "segm/AP", "bbox/AP50", "sem_seg/mIoU", "sem_seg/pACC") if key in metrics
    ]
    assert len(main) >= 2
    assert run.parent.name.startswith("clip") or all(metrics[key] > 5 for key in main), metrics
    for key in main:
        assert number(metrics[key]) in shown, key
    name = read_run(run).cfg.DATASETS.TEST[0]
    folder = run / "inference" / name
    if "labels" in name:
        found = read_labeled(name, folder)
        by_class = {f"sem_seg/IoU-{n}": v for n, v in zip(found.class_names, found.iou, strict=True)}
        by_class |= {f"sem_seg/ACC-{n}": v for n, v in zip(found.class_names, found.accuracy, strict=True)}
    else:
        tasks = [task for task in ("bbox", "segm") if f"{task}/AP" in metrics]
        found = read_detections(name, folder, tasks)
        by_class = {
            f"{task}/AP-{n}": value
            for task in tasks
            for n, value in zip(found.class_names, found.average_precision(task), strict=True)
        }
    assert len(by_class) >= 18
    for key, value in {**found.metrics, **by_class}.items():
        assert_close(float(value), metrics[key], atol=1e-9, rtol=1e-9, equal_nan=True, msg=key)


def test_nothing_is_asked_from_a_network_and_no_name_is_run(run):
    seen = Page(run / "report.html")
    assert seen.links and all(link.startswith(("data:image/jpeg;base64,", "#")) for link in seen.links)
    assert not {"script", "iframe", "object", "link"} & set(seen.tags)
    assert EVIL in seen.text and "<i>run & run" in seen.text
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "<i>run" not in text and "url(http" not in text
    assert len(text.encode()) < MAX_BYTES


def test_images_have_truth_predictions_and_score_maps(run):
    seen = Page(run / "report.html")
    images = seen.text.count("ground truth")
    assert images >= 4
    maps = seen.text.count("score map: ")
    assert (maps > 0) == run.parent.name.startswith("denseclip")
    assert seen.tags.count("img") == 2 * images + maps
    assert "Click an image to enlarge it" in seen.text and "No images" not in seen.text


def test_curves_confusions_config_and_state_are_there(run):
    seen = Page(run / "report.html")
    for words in ("Confusions", "ended: 2 iterations", "SOLVER.BASE_LR", "By class"):
        assert words in seen.text, words
    of_objects = "semantic" not in run.parent.name
    assert seen.tags.count("svg") == 2 * of_objects  # two iterations make no curve
    for words in ("Precision and recall", "By size", "false alarms"):
        assert (words in seen.text) == of_objects, words
    assert "not from the last evaluation" not in seen.text


def test_the_report_shows_what_the_start_has_recorded(run):
    (start,) = json.loads((run / "run.json").read_text())["starts"]
    seen = Page(run / "report.html").text
    settings = dict(start["settings"])
    assert settings["batch"] == "2 images, 2 a process" and settings["iterations"].endswith("of 4 images")
    for value in (*settings.values(), start["command"], start["time"], start["environment"][1][1]):
        assert value in seen, value
    total = sum(int(row[3].replace(",", "")) for row in start["parameter_groups"][1:])
    assert total > 10_000 and all(cell in seen for row in start["parameter_groups"] for cell in map(str, row))
    assert start["overrides"] == [] and start["seconds"] > 0
    assert "training time" in seen and "unknown: this folder has no run.json" not in seen


def test_a_resumed_run_adds_its_start_and_a_new_one_begins_anew(detector, data):
    before = read_starts(detector)
    options = ["OUTPUT_DIR", str(detector), "DATALOADER.NUM_WORKERS", 0]
    for resume, count in ((True, 2), (False, 1)):
        cfg = load_config(str(detector / "config.yaml"), [*options, "SOLVER.MAX_ITER", 3])
        trainer = Trainer(cfg, recipe=load_config(str(detector / "config.yaml"), []))
        trainer.resume_or_load(resume=resume)
        trainer.train()
        starts = read_starts(detector)
        assert len(starts) == count
        assert starts[-1]["overrides"] == ["SOLVER.MAX_ITER: 3 instead of 2"]
        assert starts[0] == before[0] or not resume
        seen = Page(write_report(detector)).text
        assert "SOLVER.MAX_ITER: 3 instead of 2" in seen
        assert (", then 0:00:" in seen) == resume
    record_evaluation(str(detector))
    assert read_starts(detector) == starts  # the training's


def test_an_older_run_has_a_report_without_what_it_did_not_record(detector):
    (detector / "run.json").unlink()
    seen = Page(write_report(detector)).text
    assert "settings are unknown: this folder has no run.json" in seen
    assert "Overrides of the config file and learning rates are unknown" in seen
    assert "By class" in seen and "ended: 2 iterations" in seen
    record_evaluation(str(detector))
    seen = Page(write_report(detector)).text
    assert "Of the start on" in seen and "settings are unknown" not in seen


# Incomplete runs


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"is no OUTPUT_DIR of tools/train_net.py: it has no config.yaml"
    ):
        write_report(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(FileNotFoundError, match="has nothing to report yet: neither metrics.json"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_command_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    """With a run too, and nothing is written to the run's folder."""
    monkeypatch.setattr("sys.argv", ["tools/report.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"error: {tmp_path} is no OUTPUT_DIR"):
        runpy.run_path("tools/report.py", run_name="__main__")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(load_config(CONFIG, []).dump())
    (tmp_path / "run/metrics.json").write_text('{"iteration": 19, "total_loss": 2.5}\n')
    options = [str(tmp_path / "run"), "--output", str(tmp_path / "page.html")]
    monkeypatch.setattr("sys.argv", ["tools/report.py", *options])
    runpy.run_path("tools/report.py", run_name="__main__")
    assert f"Wrote {tmp_path}/page.html (0.0 MB)" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "metrics.json"]
    assert "not ended: 20 of 1000 iterations" in Page(tmp_path / "page.html").text


def test_a_killed_run_is_reported_as_far_as_it_came(detector):
    (detector / "model_final.pth").unlink()
    (detector / "last_checkpoint").unlink()
    lines = [json.dumps({"iteration": i, "total_loss": 3.0 - i, "lr": 0.1, "bbox/AP": 9.0}) for i in range(2)]
    (detector / "metrics.json").write_text("\n".join([*lines, lines[0][:9]]))
    seen = Page(write_report(detector)).text
    for words in (
        "not ended: 2 of 2 iterations", "No images: There is no checkpoint yet.", "Losses", "Learning rate",
        "Metrics of the periodic evaluations", "Box AP", "bbox/AP 9.00 there",
    ):  # fmt: skip
        assert words in seen, words
    results = detector / "inference/report_val/coco_instances_results.json"
    results.write_text(results.read_text()[:100])  # as if it were being written
    assert "Not shown: report_val: " in Page(write_report(detector)).text


def test_a_run_without_evaluation_says_so(detector):
    shutil.rmtree(detector / "inference")
    config = (detector / "config.yaml").read_text()
    (detector / "config.yaml").write_text(config.replace("  TEST:\n  - report_val\n", "  TEST: []\n"))
    (detector / "metrics.json").write_text(
        '{"iteration": 0, "total_loss": 1.0}\n{"iteration": 1, "total_loss": 2.0}'
    )
    seen = Page(write_report(detector)).text
    assert "Not evaluated yet" in seen and "Losses" in seen
    assert "Confusions" not in seen


def test_iterations_that_were_done_again_count_once(tmp_path):
    """A kill truncated a line, and the resumed run wrote after it."""
    path = tmp_path / "metrics.json"
    first = "".join(f'{{"iteration": {i}, "loss": {i}}}\n' for i in (0, 20, 40))
    path.write_text(
        first + '{"iteration": 60, "lo{"iteration": 20, "loss": 1}\n{"iteration": 40, "loss": 5}\n'
    )
    assert read_records(path) == {0: {"loss": 0}, 20: {"loss": 20}, 40: {"loss": 5}}
    path.write_text(
        first + '{"iteration": 20, "loss": 7}\n[1]\n{"loss": 3}\n{"iteration": 20, "bbox/AP": 9}\n'
    )
    assert read_records(path) == {0: {"loss": 0}, 20: {"loss": 7, "bbox/AP": 9}}


# Training


def test_what_goes_wrong_is_a_warning(detector, caplog):
    """A folder is in the place of the report. No partial file stays, and no error is raised."""
    cfg = read_run(detector).cfg
    cfg.OUTPUT_DIR = str(detector)
    (detector / "report.html").mkdir()
    before = sorted(detector.iterdir())
    report_training(cfg)
    assert "the run is complete without it" in caplog.text and f"tools/report.py {detector}" in caplog.text
    assert sorted(detector.iterdir()) == before
    (detector / "report.html").rmdir()
    cfg.TEST.REPORT = False
    report_training(cfg)
    assert not (detector / "report.html").exists()
    cfg.TEST.REPORT = True
    report_training(cfg)
    assert (detector / "report.html").stat().st_size > 10_000


# Metrics


@pytest.fixture
def boxes(tmp_path, catalogs):
    """Write a test set of "cat" and "dog", and return a function that evaluates detections on it."""
    annotations = [
        (1, 0, [10, 10, 20, 20], 0), (1, 1, [50, 10, 20, 20], 0), (1, 0, [10, 50, 20, 20], 0),
        (1, 1, [50, 50, 40, 40], 1), (2, 1, [10, 10, 20, 20], 0),
    ]  # fmt: skip
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in (1, 2, 3)],
        "annotations": [
            {
                "id": i, "image_id": image, "category_id": 7 + c, "bbox": box, "area": box[2] * box[3],
                "iscrowd": crowd,
            }
            for i, (image, c, box, crowd) in enumerate(annotations, start=1)
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}],
    }  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(content))
    register_coco_instances("pets", {}, str(tmp_path / "truth.json"), str(tmp_path))
    MetadataCatalog.get("pets").thing_classes = ["cat", "dog"]

    def evaluate(*found: tuple[int, int, list[int], float]) -> DetectionResults:
        results = [
            {"image_id": image, "category_id": 7 + c, "bbox": box, "score": score}
            for image, c, box, score in found
        ]
        (tmp_path / "coco_instances_results.json").write_text(json.dumps(results))
        return read_detections("pets", tmp_path, ["bbox"])

    return evaluate


RIGHT = [(1, 0, [10, 10, 20, 20], 0.9), (2, 1, [11, 10, 20, 20], 0.8)]
"""Two of three cats and dogs."""


def test_confusions_are_of_the_boxes_above_the_best_threshold(boxes):
    found = boxes(
        *RIGHT,
        (1, 1, [55, 55, 20, 20], 0.95),  # in a crowd, which does not count
        (1, 0, [50, 11, 20, 20], 0.7),  # a dog
        (3, 1, [0, 0, 9, 9], 0.5),  # on nothing
        (1, 1, [49, 10, 20, 20], 0.4),  # correct: 3 of 5 boxes and 4 objects, F1 6 / 9; up to 0.8, 4 / 6
    )
    assert (found.threshold, found.f1) == (0.8, 4 / 6)
    assert found.confusions.tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
    assert found.quality == {1: (2 / 4, 3), 2: (1.0, 1)}
    wrong = (1, 1, [12, 52, 20, 20], 0.95), (3, 1, [0, 0, 9, 9], 0.93)  # a cat, and nothing
    few = boxes(*wrong, *RIGHT, (1, 1, [49, 10, 20, 20], 0.7))
    assert (few.threshold, few.f1) == (0.7, 6 / 9)
    assert few.confusions.tolist() == [[1, 1, 0], [0, 2, 0], [0, 1, 0]]
    assert few.quality == {1: (4 / 6, 3), 2: (1.0, 1), 3: (0.0, 1)}
    assert few.objects.tolist() == [2, 2]
    assert few.sizes == {"small": 4}


def test_a_crowd_excuses_boxes_of_its_own_class_alone(boxes):
    """As in COCO. The crowd has dogs."""
    cat, dog = (1, 0, [55, 55, 20, 20], 0.95), (1, 1, [55, 70, 20, 20], 0.95)
    assert boxes(*RIGHT, dog).confusions.tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
    assert boxes(*RIGHT, cat).confusions.tolist() == [[1, 0, 1], [0, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_right_and_false_as_for_coco(seed, tmp_path, catalogs):
    content, results = scene(seed, crowds=0.4, images=20)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "coco_instances_results.json").write_text(json.dumps(results))
    register_coco_instances("crowds", {}, str(tmp_path / "truth.json"), str(tmp_path))
    found = read_detections("crowds", tmp_path, ["bbox"])
    evaluation = by_pycocotools(content, results, "bbox")
    right = false = 0
    for image in filter(None, evaluation.evalImgs):
        if image["aRng"] == evaluation.params.areaRng[0]:
            counts = (np.array(image["dtScores"]) >= found.threshold) & ~image["dtIgnore"][0]
            right += (image["dtMatches"][0][counts] > 0).sum()
            false += (image["dtMatches"][0][counts] == 0).sum()
    assert false > 10
    assert (found.confusions[:-1, :-1].trace(), found.confusions[:, :-1].sum()) == (right, right + false)


def test_a_file_with_words_for_ids_and_little_else_is_reported(boxes, tmp_path):
    """No `iscrowd`, no areas, objects without masks, and a detection with NaN."""
    path = tmp_path / "truth.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["id"] = f"image {image['id']}"
    for k, annotation in enumerate(content["annotations"]):
        del annotation["iscrowd"], annotation["area"]
        annotation |= {"id": 0, "image_id": f"image {annotation['image_id']}"}
        if k:
            annotation["segmentation"] = []
    path.write_text(json.dumps(content))
    mask = encode_counts([10, 20, 9970], (100, 100))
    results = [
        {
            "image_id": f"image {image}",
            "category_id": 7 + c,
            "bbox": box,
            "score": score,
            "segmentation": mask,
        }
        for image, c, box, score in (*RIGHT, (3, 0, [0, 0, 9, 9], math.nan))
    ]
    (tmp_path / "coco_instances_results.json").write_text(json.dumps(results))
    found = read_detections("pets", tmp_path, ["bbox", "segm"])
    assert found.confusions.tolist() == [[1, 0, 1], [0, 1, 2], [0, 0, 0]]
    assert found.sizes == {"small": 4, "medium": 1}
    assert found.quality == {"image 1": (2 / 5, 4), "image 2": (1.0, 1)}
    assert found.metrics["bbox/AP50"] > 0 == found.metrics["segm/AP50"]


def test_detections_of_other_data_are_told(boxes, tmp_path):
    with pytest.raises(ValueError, match="does not have image 9 or category 7"):
        boxes((9, 0, [0, 0, 9, 9], 0.5))


def test_a_model_that_finds_nothing_has_a_page_all_the_same(boxes):
    found = boxes()
    assert (found.threshold, found.f1) == (0.5, 0.0)
    assert found.confusions.tolist() == [[0, 0, 2], [0, 0, 2], [0, 0, 0]]
    part = box_section("pets", found)
    assert "found nothing at all" in part.notes[0]
    assert [row[0].text for row in part.classes.rows] == ["cat", "dog"]


def test_classes_and_confusions_are_ranked(boxes):
    part = box_section("pets", boxes(*RIGHT, (1, 1, [12, 52, 20, 20], 0.85)))
    assert [row[0].text for row in part.classes.rows] == ["cat", "dog"]
    ((is_, taken_for, count, share),) = part.confusions.rows
    assert (is_.text, taken_for.text, count.text, share.text) == ("cat", "dog", "1", "50%")
    assert part.matrix.rows[0] == [(1, 0.5), (1, 0.5), (0, 0.0)]
    assert (part.matrix.across[-1], part.matrix.down[-1]) == ("missed", "nothing there")


def test_pixels_are_counted_without_those_to_ignore_wherever_the_data_are_by_now(tmp_path, catalogs):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    truth = np.array([[0, 0, 1], [1, 255, 2]], dtype=np.uint8)
    Image.fromarray(truth).save(tmp_path / "labels/a.png")
    Image.fromarray(truth).save(tmp_path / "images/a.png")
    register_semantic_folder("tiny", tmp_path / "images", tmp_path / "labels", ["x", "y", "z"])
    # COCO's run lengths go down the columns and start outside.
    segments = [
        {"category_id": 0, "counts": [0, 1, 1, 1, 3]},  # rows: 1 1 0 / 0 0 0
        {"category_id": 1, "counts": [1, 1, 1, 3]},  # 0 0 1 / 1 1 0
        {"category_id": 2, "counts": [5, 1]},
    ]
    for segment in segments:
        segment["file_name"] = "elsewhere/a.png"
        segment["segmentation"] = encode_counts(segment.pop("counts"), truth.shape)
    (tmp_path / "sem_seg_predictions.json").write_text(json.dumps(segments))
    found = read_labeled("tiny", tmp_path)
    assert found.confusions.tolist() == [[2, 0, 0], [0, 2, 0], [0, 0, 1]]
    assert found.metrics == {"sem_seg/mIoU": 100.0, "sem_seg/mACC": 100.0, "sem_seg/pACC": 100.0}
    assert found.quality == {str(tmp_path / "images/a.png"): (1.0, 3)}


def encode_counts(counts: list[int], shape: tuple[int, int]) -> dict:
    encoded = mask_util.frPyObjects({"counts": counts, "size": list(shape)}, *shape)
    return {**encoded, "counts": encoded["counts"].decode()}


def test_no_image_is_among_the_best_and_the_worst():
    quality = {"a": (1.0, 1), "b": (1.0, 3), "c": (0.5, 1), "d": (0.0, 1), "e": (0.0, 2)}
    assert best_and_worst(quality, 2) == (["b", "a"], ["e", "d"])
    assert best_and_worst(quality, 9) == (["b", "a", "c"], ["e", "d"])
    assert best_and_worst({"a": (0.2, 1)}, 4) == (["a"], [])
    assert best_and_worst({}, 4) == ([], [])


def test_the_page_stays_small(detector, monkeypatch, boxes):
    """LVIS's 1203 classes and a day of iterations. Noise makes the largest JPEGs."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    panels = 2 * page.IMAGES * (2 + 3)
    assert panels * len(encoded(noise, *SIZES[-1])) < page.MAX_IMAGE_BYTES
    rng, count = np.random.default_rng(0), 1203
    many = DetectionResults(
        class_names=[f"class number {i} of many" for i in range(count)],
        metrics=boxes(*RIGHT).metrics,
        precision={"bbox": rng.random((10, 101, count))},
        threshold=0.5,
        confusions=rng.integers(0, 9, (count + 1, count + 1)),
        sizes={},
        quality={},
    )
    shutil.rmtree(detector / "inference")
    monkeypatch.setattr(page, "_parts", lambda run: ([box_section("many", many)], []))
    losses = {f"loss_{name}": 1.5 for name in range(9)}
    lines = (json.dumps({"iteration": i, **losses}) for i in range(5000))
    (detector / "metrics.json").write_text("\n".join(lines))
    assert write_report(detector).stat().st_size < MAX_BYTES - page.MAX_IMAGE_BYTES


def test_a_long_curve_keeps_its_course():
    points = np.stack([np.arange(3000), np.linspace(5, 1, 3000)], axis=1)
    chart = line_chart("x", {"a": points, EVIL: points[:1]}, "iteration", "loss", smooth=True)
    assert len(chart.svg) < 100 * MAX_POINTS
    assert [name for name, _ in chart.legend] == ["a", EVIL]
    assert "script" not in chart.svg and "http" not in chart.svg

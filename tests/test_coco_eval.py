"""Metrics of COCO and LVIS equal those of pycocotools and lvis bit for bit, with ids of any kind."""

import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from denseclip_d2.evaluation.coco import COCOEvaluator
from denseclip_d2.evaluation.coco_eval import evaluate_coco, evaluate_lvis
from denseclip_d2.evaluation.ground_truth import category_ids, finite

WIDTH, HEIGHT = 200, 160
EMPTY = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}


@pytest.fixture(params=["hotcoco", "the fallback"], autouse=True)
def engine(request, monkeypatch):
    if request.param == "hotcoco":
        pytest.importorskip("hotcoco")
    else:
        monkeypatch.setitem(sys.modules, "hotcoco", None)
    return request.param


# Ground truth and detections


def encoded(polygons: list[list[float]]) -> dict:
    mask = mask_util.merge(mask_util.frPyObjects(polygons, HEIGHT, WIDTH))
    return {**mask, "counts": mask["counts"].decode()}


def counts_of(mask: dict) -> dict:
    """Return the mask as a list of run lengths. The first run is outside."""
    flat = mask_util.decode(mask).ravel(order="F")
    ends = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return {"size": mask["size"], "counts": np.diff([0, *ends, flat.size]).tolist()}


def outline(box: list[float], corners: int) -> list[float]:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    x, y = box[0] + box[2] / 2 * (1 + np.cos(angles)), box[1] + box[3] / 2 * (1 + np.sin(angles))
    return np.stack([x, y], axis=1).round(2).ravel().tolist()


def scene(
    seed: int = 0, *, objects: int = 8, detections: int = 30, classes: int = 4, spare: int = 0,
    crowds: float = 0.0, empty: float = 0.0, digits: int = 9, images: int = 6,
) -> tuple[dict, list[dict]]:  # fmt: skip
    """Return ground truth, and detections near its objects, elsewhere and under other names.

    Args:
        objects, detections: maximal numbers per image. Some images have none.
        spare: number of classes without objects. If positive, the first class has no detections.
        crowds, empty: fractions of objects that are crowds, and of boxes and masks without area.
        digits: digits of the scores.
    """
    rng = np.random.default_rng(seed)
    content = {
        "images": [{"id": i, "width": WIDTH, "height": HEIGHT} for i in range(1, images + 1)],
        "annotations": [],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, classes + spare + 1)],
    }
    found: list[dict] = []
    for image in range(1, images + 1):
        boxes = rng.uniform(1, [150, 120, 120, 120], (int(rng.integers(0, objects + 1)), 4)).round(2)
        for box in boxes.tolist():
            crowd = rng.random() < crowds
            area = box[2] * box[3] * rng.uniform(0.1, 1.2)  # also near the limits of small and large
            mask: list | dict = [outline(box, int(rng.integers(3, 12)))]
            if rng.random() < 0.3:
                mask += [outline([box[0] + 20, *box[1:]], 5)]
            mask = counts_of(encoded(mask)) if crowd else encoded(mask) if rng.random() < 0.3 else mask
            if rng.random() < empty:
                box, mask = [*box[:2], 0.0, box[3]], EMPTY
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1, "image_id": image, "bbox": box, "area": area,
                    "category_id": int(rng.integers(1, classes + 1)), "iscrowd": int(crowd),
                    "segmentation": mask,
                }
            )  # fmt: skip
        truth = [a for a in content["annotations"] if a["image_id"] == image]
        for _ in range(int(rng.integers(0, detections + 1)) if image > 1 else detections):
            near = truth[int(rng.integers(len(truth)))] if truth and rng.random() < 0.8 else None
            box = near["bbox"] if near else rng.uniform(1, [150, 120, 80, 80]).tolist()
            box = (np.array(box) * np.exp(rng.normal(0, 0.08, 4))).tolist()
            category = near["category_id"] if near else 0
            if not near or rng.random() < 0.2:
                category = int(rng.integers(1 + bool(spare), classes + spare + 1))
            mask = encoded([outline(box, 12)])
            if rng.random() < empty:
                box, mask = [*box[:3], 0.0], encoded([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
            found.append(
                {
                    "image_id": image, "category_id": category, "bbox": box, "segmentation": mask,
                    "score": round(float(rng.random()), digits),
                }
            )  # fmt: skip
    return content, found


def one_class(content: dict, found: list[dict]) -> tuple[dict, list[dict]]:
    """Return the first image's detections under one name."""
    return content, [{**d, "category_id": 2} if d["image_id"] == 1 else d for d in found]


CASES: dict[str, Callable[[], tuple[dict, list[dict]]]] = {
    "plain": scene,
    "scores that tie": lambda: scene(1, digits=1),
    "all scores alike": lambda: scene(2, digits=0),
    "crowds": lambda: scene(3, crowds=0.4),
    "more than 100 of an image": lambda: scene(4, detections=300),
    "more than 100 of a class": lambda: one_class(*scene(5, detections=300)),
    "classes without objects or detections": lambda: scene(6, spare=3),
    "empty boxes and masks": lambda: scene(7, empty=0.3, crowds=0.2),
    "no objects": lambda: scene(8, objects=0),
    "one detection": lambda: scene(9, detections=1),
}


def by_pycocotools(content: dict, found: list[dict], task: str, limit: int = 100) -> COCOeval:
    """Return the metrics by pycocotools alone."""
    content, found = copy.deepcopy((content, found))
    for detection in found:
        if task == "segm":
            del detection["bbox"]  # sizes are those of the masks, as in Detectron2
    truth = COCO()
    truth.dataset = content
    truth.createIndex()
    # pycocotools' summary has no AP for other limits than 100. Detectron2's has.
    evaluation = (COCOeval if limit == 100 else COCOevalMaxDets)(truth, truth.loadRes(found), task)
    evaluation.params.maxDets = [1, 10, limit]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def assert_pycocotools_metrics(found, expected: COCOeval) -> None:
    """Compare bit for bit. -1 means that a metric is undefined."""
    assert [*found.metrics.values()] == expected.stats[:6].tolist()
    np.testing.assert_array_equal(found.precision, expected.eval["precision"][..., 0, -1])


# COCO


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("case", CASES)
def test_coco_has_pycocotools_figures_to_the_last_bit(case, task):
    content, found = CASES[case]()
    before = json.dumps([content, found])
    evaluation = evaluate_coco(content, found, task, category_ids(content, {}))
    assert_pycocotools_metrics(evaluation, by_pycocotools(content, found, task))
    assert json.dumps([content, found]) == before
    if case == "plain":
        assert 0.05 < evaluation.metrics["AP"] < 0.9


def test_photographs_have_pycocotools_figures_to_the_last_bit(coco_root):
    """The photographs have crowds, objects of all sizes and 80 classes."""
    content = json.loads((coco_root / "coco/annotations/instances_val2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    rng, found = np.random.default_rng(0), []
    for annotation in content["annotations"] * 2:
        box = (np.array(annotation["bbox"]) * np.exp(rng.normal(0, 0.1, 4))).tolist()
        mask = mask_util.merge(mask_util.frPyObjects([outline(box, 9)], *sizes[annotation["image_id"]]))
        found.append(
            {
                "image_id": annotation["image_id"], "category_id": annotation["category_id"], "bbox": box,
                "segmentation": mask, "score": round(float(rng.random()), 2),
            }
        )  # fmt: skip
    assert any(annotation["iscrowd"] for annotation in content["annotations"])
    for task in ("bbox", "segm"):
        evaluation = evaluate_coco(content, found, task, category_ids(content, {}))
        assert_pycocotools_metrics(evaluation, by_pycocotools(content, found, task))


@pytest.mark.parametrize("limit", [10, 300])
def test_other_numbers_of_detections_count(limit):
    content, found = CASES["more than 100 of a class"]()
    evaluation = evaluate_coco(content, found, "bbox", category_ids(content, {}), max_detections=limit)
    assert_pycocotools_metrics(evaluation, by_pycocotools(content, found, "bbox", limit))
    usual = by_pycocotools(content, found, "bbox")
    assert (evaluation.precision != usual.eval["precision"][..., 0, -1]).any()


def test_images_can_be_chosen():
    content, found = scene()
    ids = category_ids(content, {})
    chosen = {2, 3, 5}
    few = {**content, "images": [image for image in content["images"] if image["id"] in chosen]}
    few["annotations"] = [a for a in content["annotations"] if a["image_id"] in chosen]
    expected = by_pycocotools(few, [d for d in found if d["image_id"] in chosen], "bbox")
    evaluation = evaluate_coco(content, found, "bbox", ids, image_ids=chosen)
    assert_pycocotools_metrics(evaluation, expected)


# Ids and values


IDS: dict[str, dict[str, Callable]] = {
    "annotations from 0": {"annotation": lambda i: i - 1},
    "annotations doubled": {"annotation": lambda i: i // 2},
    "annotations in words": {"annotation": "a{}".format},
    "annotations from 2**53": {"annotation": lambda i: 2**53 + i},
    "annotations from 2**64": {"annotation": lambda i: 2**64 + i},
    "images in words": {"image": "scene {:03}".format},
    "images of 17 digits": {"image": lambda i: 20240101120000000 + i},
    "images from 2**64": {"image": lambda i: 2**64 + i},
    "images in quotes": {"image": str},
    "images below 0": {"image": lambda i: i - 99},
    "categories in words": {"category": "class {}".format},
    "categories from 0": {"category": lambda i: i - 1},
    "categories from 2**64": {"category": lambda i: 2**64 + i},
    "all in words": dict.fromkeys(("annotation", "image", "category"), "x{:03}".format),
}


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("case", IDS)
def test_ids_of_any_kind_have_the_figures_of_plain_ones(case, task):
    content, found = scene(11, digits=1, crowds=0.2)
    expected = by_pycocotools(content, found, task)
    change = {kind: lambda i: i for kind in ("annotation", "image", "category")} | IDS[case]
    for record in content["images"]:
        record["id"] = change["image"](record["id"])
    for record in content["categories"]:
        record["id"] = change["category"](record["id"])
    for record in content["annotations"]:
        record["id"] = change["annotation"](record["id"])
    for record in (*content["annotations"], *found):
        record["image_id"] = change["image"](record["image_id"])
        record["category_id"] = change["category"](record["category_id"])
    content["images"].reverse()  # in the order of ids, not of the file
    evaluation = evaluate_coco(content, found, task, category_ids(content, {}))
    assert_pycocotools_metrics(evaluation, expected)


def test_one_object_with_id_0_is_found():
    """pycocotools treats a match with id 0 as no match."""
    content, _ = scene(objects=1)
    content["annotations"] = [{**content["annotations"][0], "id": 0}]
    perfect = [{**content["annotations"][0], "score": 0.9}]
    assert by_pycocotools(content, perfect, "bbox").stats[0] == 0
    assert evaluate_coco(content, perfect, "bbox", category_ids(content, {})).metrics["AP"] == pytest.approx(
        1
    )


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_values_that_are_missing_are_made_up_for(task):
    """Defaults: `iscrowd` is 0. Area and box come from the mask, else the area comes from the box."""
    content, found = scene(12)
    masks = [
        mask_util.merge(mask_util.frPyObjects(mask, HEIGHT, WIDTH)) if isinstance(mask, list) else mask
        for mask in (annotation["segmentation"] for annotation in content["annotations"])
    ]
    for annotation, mask in zip(content["annotations"], masks, strict=True):
        annotation["area"] = float(mask_util.area(mask))
        annotation["bbox"] = mask_util.toBbox(mask).tolist()
    ids, expected = category_ids(content, {}), by_pycocotools(content, found, task)
    for i, annotation in enumerate(content["annotations"]):
        if i % 2:
            del annotation["iscrowd"], annotation["area"], annotation["bbox"]
        else:
            annotation |= {"iscrowd": None, "area": None, "bbox": None}
    assert_pycocotools_metrics(evaluate_coco(content, found, task, ids), expected)

    content, found = scene(13)
    for annotation in content["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    expected = by_pycocotools(content, found, "bbox")
    for annotation in content["annotations"]:
        del annotation["area"], annotation["segmentation"]
    assert_pycocotools_metrics(evaluate_coco(content, found, "bbox", ids), expected)


@pytest.mark.parametrize("mask", [[], None, [[]], [[1.0, 2.0, 30.0, 40.0]], [[1.0, 2.0, 3.0]], "gone"])
def test_an_object_without_a_mask_counts_as_one_with_an_empty_mask(mask, caplog):
    content, found = scene(14)
    for annotation in content["annotations"][:3]:
        annotation["segmentation"] = EMPTY
    expected = by_pycocotools(content, found, "segm")
    for annotation in content["annotations"][:3]:
        annotation["segmentation"] = mask
        if mask == "gone":
            del annotation["segmentation"]
    evaluation = evaluate_coco(content, found, "segm", category_ids(content, {}))
    assert_pycocotools_metrics(evaluation, expected)
    assert "3 objects have no mask. They count as missed" in caplog.text


def test_objects_of_other_images_and_categories_do_not_count():
    content, found = scene()
    expected = by_pycocotools(content, found, "bbox")
    stray = content["annotations"][0]
    content["annotations"] += [
        {**stray, "id": 9998, "image_id": 77},
        {**stray, "id": 9999, "category_id": 77},
    ]
    ids = category_ids(content, {})
    assert_pycocotools_metrics(evaluate_coco(content, found, "bbox", ids), expected)
    for wrong in ({"image_id": 77}, {"category_id": 77}):
        with pytest.raises(ValueError, match="ground truth does not have .*77.*Evaluate the model"):
            evaluate_coco(content, [*found, {**found[0], **wrong}], "bbox", ids)


def test_categories_are_in_the_order_of_the_classes():
    content, found = scene()
    ids = category_ids(content, {"thing_dataset_id_to_contiguous_id": {3: 1, 1: 0, 9: 2}})
    assert ids == [1, 3, 9, 2, 4]
    ordered = evaluate_coco(content, found, "bbox", category_ids(content, {})).precision
    evaluation = evaluate_coco(content, found, "bbox", ids)
    np.testing.assert_array_equal(evaluation.precision[..., [0, 3, 1, 4]], ordered)
    assert (evaluation.precision[..., 2] == -1).all()
    words = {"categories": [{"id": id_} for id_ in ("b", 10, "a", 9)]}
    assert category_ids(words, {}) == [9, 10, "a", "b"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_detections_that_are_not_finite_are_left_out_and_told(value, caplog):
    _, found = scene()
    bad = [{**found[0], "score": value}, {**found[1], "bbox": [1.0, value, 2.0, 3.0]}]
    assert finite([*bad, *found]) == found
    left_out = f"2 of {len(found) + 2} detections are left out, because their score or box is NaN or infinite"
    assert left_out in caplog.text
    caplog.clear()
    assert finite(found) == found and not caplog.text


# LVIS


def federated(content: dict, found: list[dict], seed: int = 0) -> tuple[dict, list[dict]]:
    """Return it with LVIS's fields of images and classes and without crowds, which LVIS does not have."""
    rng = np.random.default_rng(seed)
    for i, category in enumerate(content["categories"]):
        category["frequency"] = "rcf"[i % 3]
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    for image in content["images"]:
        present = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
        ids = {category["id"] for category in content["categories"]}
        image["neg_category_ids"] = [id_ for id_ in sorted(ids - present) if rng.random() < 0.5]
        image["not_exhaustive_category_ids"] = [id_ for id_ in sorted(present) if rng.random() < 0.3]
    return content, found


def ignored(content: dict, found: list[dict]) -> tuple[dict, list[dict]]:
    for annotation in content["annotations"][::3]:
        annotation["ignore"] = 1
    return content, found


LVIS_CASES = {
    "plain": lambda: federated(*scene(20, classes=6)),
    "scores that tie": lambda: federated(*scene(21, classes=6, digits=1)),
    "more than 300 of an image": lambda: federated(*scene(22, classes=5, detections=700)),
    "classes without objects or detections": lambda: federated(*scene(23, classes=4, spare=5)),
    "empty boxes and masks": lambda: federated(*scene(24, empty=0.4)),
    "objects to ignore": lambda: ignored(*federated(*scene(25))),
}


def by_lvis(content: dict, found: list[dict], task: str, path: Path, limit: int = 300):
    from lvis import LVIS, LVISEval, LVISResults

    found = copy.deepcopy(found)
    for detection in found:
        if task == "segm":
            del detection["bbox"]
    path.write_text(json.dumps(content))
    with patch.object(np, "float", float, create=True):
        truth = LVIS(str(path))
        evaluation = LVISEval(truth, LVISResults(truth, found, limit), task)
        evaluation.run()
    return evaluation


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("case", LVIS_CASES)
def test_lvis_has_the_figures_of_its_package_to_the_last_bit(case, task, tmp_path):
    pytest.importorskip("lvis")
    content, found = LVIS_CASES[case]()
    ids = category_ids(content, {})
    for limit in (300, -1):
        expected = by_lvis(content, found, task, tmp_path / "lvis.json", limit)
        evaluation = evaluate_lvis(content, found, task, ids, max_detections=limit)
        assert evaluation.metrics == {name: expected.results[name] for name in evaluation.metrics}
        np.testing.assert_array_equal(evaluation.precision, expected.eval["precision"][..., 0])
    assert len(evaluation.metrics) == 9


def test_lvis_takes_ids_of_any_kind(tmp_path):
    pytest.importorskip("lvis")
    content, found = LVIS_CASES["plain"]()
    expected = by_lvis(content, found, "bbox", tmp_path / "lvis.json")
    for record in content["images"]:
        record["id"] = f"image {record['id']}"
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            record[key] = [f"class {id_}" for id_ in record[key]]
    for record in content["categories"]:
        record["id"] = f"class {record['id']}"
    for record in (*content["annotations"], *found):
        record["image_id"], record["category_id"] = (
            f"image {record['image_id']}",
            f"class {record['category_id']}",
        )
        record["id"] = 0
    evaluation = evaluate_lvis(content, found, "bbox", category_ids(content, {}))
    assert evaluation.metrics == {name: expected.results[name] for name in evaluation.metrics}


# Detectron2's evaluator


def instances(found: list[dict], classes: dict) -> Instances:
    result = Instances((HEIGHT, WIDTH))
    boxes = torch.tensor([d["bbox"] for d in found]).reshape(-1, 4)
    result.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
    result.scores = torch.tensor([d["score"] for d in found])
    result.pred_classes = torch.tensor([classes[d["category_id"]] for d in found], dtype=torch.int64)
    return result


def evaluated(
    name: str, content: dict, found: list[dict], classes: dict, **kwargs
) -> tuple[dict, COCOEvaluator]:
    evaluator = COCOEvaluator(name, tasks=("bbox",), **kwargs)
    evaluator.reset()
    for image in content["images"]:
        of_image = [d for d in found if d["image_id"] == image["id"]]
        evaluator.process([{"image_id": image["id"]}], [{"instances": instances(of_image, classes)}])
    return evaluator.evaluate(), evaluator


@pytest.fixture
def registered(tmp_path):
    """Register a dataset with words as ids of images and categories. Return content, detections, classes."""
    content, found = scene(30)
    for record in content["images"]:
        record["id"] = f"image {record['id']}"
    for record in content["categories"]:
        record["id"] = f"class {record['id']}"
    for record in (*content["annotations"], *found):
        record["image_id"], record["category_id"] = (
            f"image {record['image_id']}",
            f"class {record['category_id']}",
        )
    classes = {f"class {k}": class_ for class_, k in enumerate((2, 1, 4, 3))}
    name = f"{tmp_path.name}_words"
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(content))
    register_coco_instances(name, {}, str(file), str(tmp_path))
    metadata = MetadataCatalog.get(name)
    metadata.set(thing_classes=["b", "a", "d", "c"], thing_dataset_id_to_contiguous_id=classes)
    yield SimpleNamespace(name=name, metadata=metadata, content=content, found=found, classes=classes)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_results_keep_the_files_own_ids_and_classes_their_order(registered, tmp_path):
    data = registered
    results, evaluator = evaluated(
        data.name, data.content, data.found, data.classes, output_dir=str(tmp_path)
    )
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [(d["image_id"], d["category_id"]) for d in written] == [
        (d["image_id"], d["category_id"])
        for image in data.content["images"] for d in data.found if d["image_id"] == image["id"]
    ]  # fmt: skip
    evaluation = evaluate_coco(data.content, written, "bbox", [*data.classes])
    assert results["bbox"]["AP"] == 100 * evaluation.metrics["AP"] > 1
    for k, name in enumerate(data.metadata.thing_classes):
        assert results["bbox"][f"AP-{name}"] == 100 * evaluation.precision[..., k].ravel().mean()
    chosen = [image["id"] for image in data.content["images"][:3]]
    evaluation = evaluate_coco(data.content, written, "bbox", [*data.classes], image_ids=chosen)
    assert evaluator.evaluate(chosen)["bbox"]["AP"] == 100 * evaluation.metrics["AP"] != results["bbox"]["AP"]


def test_a_model_that_diverged_ends_alike_whatever_is_installed(registered, tmp_path, caplog):
    data = registered
    expected, _ = evaluated(data.name, data.content, data.found, data.classes)
    bad = [{**d, "score": math.nan} for d in data.found[:4]]
    results, _ = evaluated(data.name, data.content, data.found + bad, data.classes, output_dir=str(tmp_path))
    np.testing.assert_equal(results, expected)
    assert "NaN" not in (tmp_path / "coco_instances_results.json").read_text()
    assert "4 of" in caplog.text and "left out" in caplog.text
    results, _ = evaluated(data.name, data.content, bad, data.classes)
    assert math.isnan(results["bbox"]["AP"])


def test_ground_truth_can_come_from_the_metadata(registered, tmp_path):
    """Ground truth in the metadata replaces the file. Here it has half of the objects."""
    data, metadata = registered, vars(registered.metadata)
    half = {**data.content, "annotations": data.content["annotations"][::2]}
    metadata["coco_content"] = lambda: half
    for folder in ("first", "second"):
        output = tmp_path / folder
        results, _ = evaluated(data.name, data.content, data.found, data.classes, output_dir=str(output))
        written = output / f"{data.name}_coco_format.json"
        assert json.loads(written.read_text()) == half
        assert metadata["json_file"] == str(written)
        expected = evaluate_coco(
            half, json.loads((output / "coco_instances_results.json").read_text()), "bbox", [*data.classes]
        )
        assert results["bbox"]["AP"] == 100 * expected.metrics["AP"]
    whole = evaluate_coco(data.content, data.found, "bbox", [*data.classes])
    assert results["bbox"]["AP"] != pytest.approx(100 * whole.metrics["AP"])

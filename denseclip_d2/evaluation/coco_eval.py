"""Compute the metrics of COCO and LVIS by hotcoco if it is installed, else by pycocotools and lvis.

The metrics and curves are the same to the last bit; docs/lab_book.md has the times.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .ground_truth import Content, Results, renumbered

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
LVIS_METRICS = (*METRICS, "APr", "APc", "APf")


@dataclass(frozen=True)
class Evaluation:
    """
    Attributes:
        metrics: 0 to 1, by the names in :data:`METRICS` or :data:`LVIS_METRICS`; -1 if not defined.
        precision: (10, 101, K) at IoUs of 0.5 to 0.95 and recalls of 0 to 1, for objects of all sizes; -1 for
            classes without objects.
    """

    metrics: Mapping[str, float]
    precision: np.ndarray


def evaluate_coco(
    content: Content,
    results: Results,
    task: str,
    categories: Sequence[Any],
    *,
    image_ids: Collection[Any] | None = None,
    max_detections: int = 100,
) -> Evaluation:
    """Evaluate detections as COCO does, and print its table.

    Args:
        content: the ground truth, with ids of any kind. The mask or the box gives a missing area, and the
            mask a missing box. An object without a mask counts as missed, like an object with an empty mask
            in pycocotools.
        results: detections with the ids of the ground truth, without NaN (:func:`.ground_truth.finite`).
        task: "bbox" or "segm".
        categories: ids of the K categories by class, of :func:`.ground_truth.category_ids`.
        image_ids: ids of the images to evaluate; None: all.
        max_detections: the number of detections of a class in an image that count.

    Raises:
        ValueError: a detection is of an image or of a category that the ground truth does not have.
    """
    truth, found = renumbered(content, results, task, categories, image_ids=image_ids)
    if hotcoco := _hotcoco():
        ground_truth = hotcoco.COCO(truth)
        evaluation = hotcoco.COCOeval(ground_truth, ground_truth.load_res(found), task)
    else:
        ground_truth = _coco(truth)
        detections = ground_truth.loadRes(found) if found else _coco({**truth, "annotations": []})
        evaluation = COCOevalMaxDets(ground_truth, detections, task)
    evaluation.params.maxDets = [1, 10, max_detections]
    _run(evaluation)
    metrics = dict(zip(METRICS, map(float, evaluation.stats), strict=False))
    return Evaluation(metrics, evaluation.eval["precision"][..., 0, -1])


def evaluate_lvis(
    content: Content,
    results: Results,
    task: str,
    categories: Sequence[Any],
    *,
    max_detections: int = 300,
) -> Evaluation:
    """Evaluate detections as LVIS does.

    Args:
        content, results, task, categories: as for :func:`evaluate_coco`.
        max_detections: the number of detections in an image, of all classes, that count; below 0: all.

    Raises:
        ValueError: as in :func:`evaluate_coco`.
    """
    truth, found = renumbered(content, results, task, categories, lvis=True)
    hotcoco = _hotcoco()
    # hotcoco does not know `ignore`, which LVIS's own files do not have.
    if hotcoco and not any(annotation["ignore"] for annotation in truth["annotations"]):
        truth["annotations"] = [annotation for annotation in truth["annotations"] if annotation["area"] > 0]
        ground_truth = hotcoco.COCO(truth)
        detections = hotcoco.LVISResults(
            ground_truth, _counted_by_lvis(found, task, max_detections, hotcoco), -1
        )
        evaluation = hotcoco.LVISEval(ground_truth, detections, task)
        _run(evaluation)
        precision = evaluation.eval["precision"][..., 0, 0]
    else:
        evaluation = _lvis(truth, found, task, max_detections)
        precision = evaluation.eval["precision"][..., 0]
    metrics = evaluation.get_results()
    return Evaluation({name: float(metrics[name]) for name in LVIS_METRICS}, precision)


def _hotcoco() -> ModuleType | None:
    try:
        import hotcoco
    except ImportError:
        return None
    return hotcoco


def _run(evaluation: Any) -> None:
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()


def _coco(content: dict) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _counted_by_lvis(results: list[dict], task: str, limit: int, hotcoco: ModuleType) -> list[dict]:
    """Return the detections that the package lvis evaluates: the best of each image, if not empty.

    hotcoco counts an empty box or mask as a false detection.
    """
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    kept = []
    for found in by_image.values():
        found.sort(key=lambda result: -result["score"])
        kept += found[: limit if limit >= 0 else None]
    if task == "bbox":
        areas = [result["bbox"][2] * result["bbox"][3] for result in kept]
    else:
        areas = hotcoco.mask.area([result["segmentation"] for result in kept])
    return [result for result, area in zip(kept, areas, strict=True) if area > 0]


def _lvis(truth: dict, found: list[dict], task: str, limit: int) -> Any:
    """Evaluate by the package lvis, an extra."""
    from lvis import LVIS, LVISEval, LVISResults

    class Loaded(LVIS):
        """Ground truth from its content instead of the path of its file."""

        def _load_json(self, content: dict) -> dict:
            return content

    class Evaluation(LVISEval):
        """LVIS's evaluation with pycocotools' ``accumulate``: that of lvis 0.5.3 needs NumPy below 1.24."""

        def accumulate(self) -> None:
            coco = COCOeval(iouType=task)
            params = coco._paramsEval = coco.params
            params.imgIds, params.catIds = self.params.img_ids, self.params.cat_ids
            params.areaRng, params.maxDets = self.params.area_rng, [None]
            names = ("dt_scores", "dt_matches", "dt_ignore", "gt_ignore")
            coco.evalImgs = [
                each and {f"{name[:2]}{name[3:].title()}": each[name] for name in names}
                for each in self.eval_imgs
            ]
            coco.accumulate()
            self.eval = {key: coco.eval[key][..., 0] for key in ("precision", "recall")}

    ground_truth = Loaded(truth)
    evaluation = Evaluation(ground_truth, LVISResults(ground_truth, found, limit), task)
    evaluation.run()
    return evaluation

"""How well the objects of a test set were found, from what its evaluation has left."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO

from ..data.statistics import size_of
from ..engine.lvis import readable_by_lvis

RESULTS = {"coco": "coco_instances_results.json", "lvis": "lvis_instances_results.json"}
IOU = 0.5
"""From which on a box is on an object, in confusions."""
IOUS = np.linspace(0.5, 0.95, 10)
"""Those that AP is the mean over; the first axis of precisions."""


@dataclass(frozen=True)
class Detections:
    """
    Attributes:
        class_names: K of them, as the data set has them.
        figures: AP and its like, as evaluators name them ("bbox/AP50"), 0 to 100.
        precision: of "bbox", and "segm" where masks were found: (10, 101, K), at :data:`IOUS` and at recalls
            of 0 to 1, NaN for classes without objects.
        threshold: the score from which on detections count in what follows; where F1 is greatest.
        confusions: (K + 1, K + 1) numbers of objects: by true class, and by that of the box on them; the last
            of both is nothing: below are boxes on nothing, at the right objects without a box.
        sizes: how many objects there are of COCO's kinds of sizes.
        quality: by image id, the F1 of its objects, and how many of them and of boxes there are; images
            without either are left out.
    """

    class_names: Sequence[str]
    figures: Mapping[str, float]
    precision: Mapping[str, np.ndarray]
    threshold: float
    confusions: np.ndarray
    sizes: Mapping[str, int]
    quality: Mapping[int, tuple[float, int]]

    @property
    def f1(self) -> float:
        """Of all objects together, 0 to 1; NaN where there are neither objects nor detections."""
        return _f1(self.confusions)

    @property
    def objects(self) -> np.ndarray:
        """(K,) how many there are of each class."""
        return self.confusions[:-1].sum(1)

    def average_precision(self, task: str, iou: float | None = None) -> np.ndarray:
        """(K,) AP of each class, 0 to 100: at one of :data:`IOUS`, or their mean."""
        precision = self.precision[task]
        at = precision if iou is None else precision[np.isclose(IOUS, iou)]
        return 100 * at.mean((0, 1))


def read_detections(name: str, folder: Path, tasks: Sequence[str]) -> Detections:
    """
    Args:
        name: of a registered test set.
        folder: what the evaluator has written for it.
        tasks: "bbox", or "segm" as well.

    Raises:
        FileNotFoundError: there are no results, or the ground truth is gone.
        ValueError: a file cannot be read: it is being written, say.
    """
    metadata = MetadataCatalog.get(name)
    kind = "lvis" if metadata.get("evaluator_type") == "lvis" else "coco"
    results = json.loads((folder / RESULTS[kind]).read_bytes())
    # Of data without a file of their own, the evaluator has written what it compared with.
    own = folder / f"{name}_coco_format.json"
    truth = own if own.is_file() else Path(metadata.json_file)
    with redirect_stdout(StringIO()):
        coco = COCO(truth)
    evaluate = evaluate_on_lvis if kind == "lvis" else evaluate_on_coco
    figures: dict[str, float] = {}
    precision: dict[str, np.ndarray] = {}
    for task in tasks if results else ():
        with redirect_stdout(StringIO()):
            found, by_class = evaluate(truth if kind == "lvis" else coco, results, task)
        figures |= {f"{task}/{key}": 100 * value if value >= 0 else np.nan for key, value in found.items()}
        precision[task] = np.where(by_class >= 0, by_class, np.nan)
    ids = sorted(coco.cats)
    images = [*_boxes_by_image(coco, results, {category: i for i, category in enumerate(ids)})]
    threshold = _best_threshold(images)
    confusions = np.zeros((len(ids) + 1, len(ids) + 1), dtype=int)
    quality = {}
    for image in images:
        of_image = image.confusions(threshold, len(ids))
        confusions += of_image
        if of_image.any():
            quality[image.id] = _f1(of_image), int(of_image.sum())
    sizes = Counter(
        size_of(annotation["area"]) for annotation in coco.anns.values() if not annotation.get("iscrowd")
    )
    names = metadata.get("thing_classes") or [coco.cats[category]["name"] for category in ids]
    return Detections(names, figures, precision, threshold, confusions, sizes, quality)


def evaluate_on_coco(coco: COCO, results: list[dict], task: str) -> tuple[dict[str, float], np.ndarray]:
    """What Detectron2's evaluator computes.

    Returns: AP and its like, -1 for what is not defined; precision (10, 101, K), -1 likewise.
    """
    evaluated = _evaluate_predictions_on_coco(coco, results, task)
    figures = dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), evaluated.stats, strict=False))
    return figures, evaluated.eval["precision"][..., 0, -1]


def evaluate_on_lvis(truth: Path, results: list[dict], task: str) -> tuple[dict[str, float], np.ndarray]:
    """The same for LVIS: what Detectron2's evaluator computes, with the precisions that it throws away."""
    from lvis import LVIS, LVISEval, LVISResults  # an extra

    if task == "segm":  # sizes are then those of masks
        results = [{k: v for k, v in result.items() if k != "bbox"} for result in results]
    with readable_by_lvis():
        lvis = LVIS(str(truth))
        evaluated = LVISEval(lvis, LVISResults(lvis, results), task)
        evaluated.run()
    figures = {key: value for key, value in evaluated.get_results().items() if key.startswith("AP")}
    return figures, evaluated.eval["precision"][..., 0]


@dataclass(frozen=True)
class _Boxes:
    """The objects and detections of an image.

    Attributes:
        id: of the image.
        true: (N,) classes of the objects, crowds left out.
        found, scores: (D,) classes and scores of the detections, the highest score first; those on a crowd,
            and on nothing, but of a class that was not looked for in the image, left out.
        iou: (D, N).
        hits: (D,) which object of its class each is on, each object once; -1 for none.
    """

    id: int
    true: np.ndarray
    found: np.ndarray
    scores: np.ndarray
    iou: np.ndarray
    hits: np.ndarray

    def confusions(self, threshold: float, num_classes: int) -> np.ndarray:
        """(K + 1, K + 1) of this image, as in :class:`Detections`."""
        count = int((self.scores >= threshold).sum())
        free = np.setdiff1d(np.arange(len(self.true)), self.hits[:count])
        table = np.zeros((num_classes + 1, num_classes + 1), dtype=int)
        for d in range(count):
            on = self.hits[d]
            if on < 0 and len(free) and self.iou[d, free].max() >= IOU:
                on = free[self.iou[d, free].argmax()]
                free = free[free != on]
            table[self.true[on] if on >= 0 else num_classes, self.found[d]] += 1
        np.add.at(table, (self.true[free], num_classes), 1)
        return table


def _boxes_by_image(coco: COCO, results: list[dict], classes: Mapping[int, int]) -> Iterator[_Boxes]:
    """
    Args:
        classes: numbers of the classes by the ids of the categories.
    """
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    for id_, image in coco.imgs.items():
        truth = coco.imgToAnns[id_]
        crowd = np.array([bool(a.get("iscrowd")) for a in truth], dtype=bool)
        true = np.array([classes[a["category_id"]] for a in truth], dtype=int)
        detections = sorted(by_image[id_], key=lambda d: -d["score"])
        found = np.array([classes[d["category_id"]] for d in detections], dtype=int)
        iou = np.zeros((len(detections), len(truth)))
        if detections and truth:
            boxes = [np.array([x["bbox"] for x in xs], dtype=float) for xs in (detections, truth)]
            iou = run_lengths.iou(*boxes, crowd.astype(np.uint8).tolist())
        hits = _hits(iou[:, ~crowd], found, true[~crowd])
        counts = iou.max(1, initial=0, where=crowd) < IOU
        if "neg_category_ids" in image:  # LVIS: what else is in the image is not known
            looked_for = {classes[c] for c in image["neg_category_ids"]} | set(true.tolist())
            counts &= np.isin(found, [*looked_for])
        counts |= hits >= 0
        scores = np.array([d["score"] for d in detections])
        yield _Boxes(id_, true[~crowd], found[counts], scores[counts], iou[counts][:, ~crowd], hits[counts])


def _hits(iou: np.ndarray, found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(D,) the object, of those of its class and not yet taken, that each detection is most on; or -1."""
    hits = np.full(len(found), -1)
    left = np.where(found[:, None] == true, iou, 0.0)
    for d in range(len(found)):
        if left.shape[1] and left[d].max() >= IOU:
            hits[d] = left[d].argmax()
            left[:, hits[d]] = 0
    return hits


def _f1(confusions: np.ndarray) -> float:
    total = confusions[:-1].sum() + confusions[:, :-1].sum()
    return float(2 * confusions.trace() / total) if total else np.nan


def _best_threshold(images: Sequence[_Boxes]) -> float:
    """The score from which on the detections of all images have the greatest F1; 0.5 if there are none."""
    scores = np.concatenate([image.scores for image in images] or [np.empty(0)])
    if not len(scores):
        return 0.5
    order = scores.argsort()[::-1]
    right = np.concatenate([image.hits >= 0 for image in images])[order].cumsum()
    objects = sum(len(image.true) for image in images)
    f1 = 2 * right / (np.arange(len(order)) + 1 + objects)
    return float(scores[order][f1.argmax()])

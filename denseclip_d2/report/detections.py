"""The quality of detections on a test set, from the files of its evaluation."""

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from pycocotools import mask as mask_util

from ..data.statistics import size_of
from ..evaluation.coco_eval import evaluate_coco, evaluate_lvis
from ..evaluation.ground_truth import Content, area_of, box_of, category_ids, finite

RESULTS = {"coco": "coco_instances_results.json", "lvis": "lvis_instances_results.json"}
IOU = 0.5
"""The lowest IoU of a box with its object, in confusions."""
IOUS = np.linspace(0.5, 0.95, 10)
"""The IoUs that AP averages over; the first axis of precisions."""


@dataclass(frozen=True)
class DetectionResults:
    """
    Attributes:
        class_names: the K names of the dataset.
        metrics: AP and others by the evaluators' names ("bbox/AP50"), 0 to 100.
        precision: of "bbox", and of "segm" for models with masks: (10, 101, K), at :data:`IOUS` and recalls
            from 0 to 1, NaN for classes without objects.
        threshold: the score with the greatest F1; the next attributes count detections above it.
        confusions: (K + 1, K + 1) numbers of objects by true class and class of the box on them. The last
            row has boxes without an object, the last column objects without a box.
        sizes: numbers of objects by COCO's size classes.
        quality: by image id, the F1 of its objects, and the number of objects and boxes; images without both
            are left out.
    """

    class_names: Sequence[str]
    metrics: Mapping[str, float]
    precision: Mapping[str, np.ndarray]
    threshold: float
    confusions: np.ndarray
    sizes: Mapping[str, int]
    quality: Mapping[Hashable, tuple[float, int]]

    @property
    def f1(self) -> float:
        """F1 of all objects, 0 to 1; NaN without objects and detections."""
        return _f1(self.confusions)

    @property
    def objects(self) -> np.ndarray:
        """(K,) numbers of objects of each class."""
        return self.confusions[:-1].sum(1)

    def average_precision(self, task: str, iou: float | None = None) -> np.ndarray:
        """Return (K,) AP of each class, 0 to 100, at one of :data:`IOUS` or their mean."""
        precision = self.precision[task]
        at = precision if iou is None else precision[np.isclose(IOUS, iou)]
        return 100 * at.mean((0, 1))


def read_detections(name: str, folder: Path, tasks: Sequence[str]) -> DetectionResults:
    """Compare the evaluator's file with the ground truth.

    Args:
        name: of a registered test set.
        folder: of the evaluator's files.
        tasks: "bbox", or "bbox" and "segm".

    Raises:
        FileNotFoundError: the results or the ground truth do not exist.
        ValueError: a file cannot be read, for example while it is written.
    """
    metadata = MetadataCatalog.get(name)
    kind = "lvis" if metadata.get("evaluator_type") == "lvis" else "coco"
    results = finite(json.loads((folder / RESULTS[kind]).read_bytes()))
    # The evaluator writes the ground truth of data that have no file.
    own = folder / f"{name}_coco_format.json"
    content = json.loads((own if own.is_file() else Path(metadata.json_file)).read_bytes())
    ids = category_ids(content, metadata)
    classes = {id_: i for i, id_ in enumerate(ids)}
    evaluate: Any = evaluate_lvis if kind == "lvis" else evaluate_coco
    metrics: dict[str, float] = {}
    precision: dict[str, np.ndarray] = {}
    for task in tasks if results else ():
        with redirect_stdout(StringIO()):
            found = evaluate(content, results, task, ids)
        metrics |= {f"{task}/{key}": 100 * v if v >= 0 else np.nan for key, v in found.metrics.items()}
        precision[task] = np.where(found.precision >= 0, found.precision, np.nan)
    objects = _objects_by_image(content, classes)
    images = [*_boxes_by_image(content, objects, results, classes)]
    threshold = _best_threshold(images)
    confusions = np.zeros((len(ids) + 1, len(ids) + 1), dtype=int)
    quality = {}
    for image in images:
        of_image = image.confusions(threshold, len(ids))
        confusions += of_image
        if of_image.any():
            quality[image.id] = _f1(of_image), int(of_image.sum())
    sizes = Counter(
        size_of(area_of(annotation, image))
        for image in content["images"]
        for annotation in objects[image["id"]]
        if not annotation.get("iscrowd")
    )
    by_id = {category["id"]: category.get("name", "") for category in content["categories"]}
    names = metadata.get("thing_classes") or [by_id[id_] for id_ in ids]
    return DetectionResults(names, metrics, precision, threshold, confusions, sizes, quality)


@dataclass(frozen=True)
class _Boxes:
    """The objects and detections of an image.

    Attributes:
        id: of the image.
        true: (N,) classes of the objects without crowds.
        found, scores: (D,) classes and scores of the detections by falling score, without those on a crowd of
            their class, and those without an object whose class LVIS has not annotated in the image.
        iou: (D, N).
        hits: (D,) the object of the same class that each detection matches, each object once; -1 for none.
    """

    id: Hashable
    true: np.ndarray
    found: np.ndarray
    scores: np.ndarray
    iou: np.ndarray
    hits: np.ndarray

    def confusions(self, threshold: float, num_classes: int) -> np.ndarray:
        """Return (K + 1, K + 1) confusions of this image, as in :class:`DetectionResults`."""
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


def _objects_by_image(content: Content, classes: Mapping[Hashable, int]) -> Mapping[Hashable, list[dict]]:
    objects = defaultdict(list)
    for annotation in content["annotations"]:
        if annotation["category_id"] in classes:
            objects[annotation["image_id"]].append(annotation)
    return objects


def _boxes_by_image(
    content: Content,
    objects: Mapping[Hashable, list[dict]],
    results: list[dict],
    classes: Mapping[Hashable, int],
) -> Iterator[_Boxes]:
    """
    Args:
        objects: annotations by image id.
        classes: class numbers by category id.
    """
    by_image = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    for image in content["images"]:
        truth = objects[image["id"]]
        crowd = np.array([bool(a.get("iscrowd")) for a in truth], dtype=bool)
        true = np.array([classes[a["category_id"]] for a in truth], dtype=int)
        detections = sorted(by_image[image["id"]], key=lambda d: -d["score"])
        found = np.array([classes[d["category_id"]] for d in detections], dtype=int)
        iou = np.zeros((len(detections), len(truth)))
        if detections and truth:
            boxes = [d["bbox"] for d in detections], [box_of(a, image) for a in truth]
            iou = mask_util.iou(*(np.array(x, dtype=float) for x in boxes), crowd.astype(np.uint8).tolist())
        hits = _hits(iou[:, ~crowd], found, true[~crowd])
        # As in COCO's matching, a crowd excuses false boxes of its class alone.
        counts = iou.max(1, initial=0, where=crowd & (found[:, None] == true)) < IOU
        if "neg_category_ids" in image:  # LVIS annotates these classes alone
            looked_for = {classes[c] for c in image["neg_category_ids"]} | set(true.tolist())
            looked_for -= {classes[c] for c in image.get("not_exhaustive_category_ids", ())}
            counts &= np.isin(found, [*looked_for])
        counts |= hits >= 0
        scores = np.array([d["score"] for d in detections])
        iou = iou[counts][:, ~crowd]
        yield _Boxes(image["id"], true[~crowd], found[counts], scores[counts], iou, hits[counts])


def _hits(iou: np.ndarray, found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return (D,) the unmatched object of its class with the highest IoU for each detection; or -1."""
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
    """Return the score threshold with the greatest F1 over all images; 0.5 without detections."""
    scores = np.concatenate([image.scores for image in images] or [np.empty(0)])
    if not len(scores):
        return 0.5
    order = scores.argsort()[::-1]
    right = np.concatenate([image.hits >= 0 for image in images])[order].cumsum()
    objects = sum(len(image.true) for image in images)
    f1 = 2 * right / (np.arange(len(order)) + 1 + objects)
    return float(scores[order][f1.argmax()])

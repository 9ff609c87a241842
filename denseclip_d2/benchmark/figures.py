"""COCO's figures of detections: how long they take."""

import copy
import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..evaluation.coco_eval import evaluate_coco
from ..evaluation.ground_truth import category_ids
from .data import SIZE, outlines, simulate
from .measure import Row, compare
from .settings import Settings

DETECTIONS = 2
"""Of each object."""


def figures(settings: Settings) -> Iterator[list[Row]]:
    """Compare pycocotools, as Detectron2 calls it, with this project's evaluation by hotcoco.

    The detections are simulated, with boxes and masks. Reading files is not in the times.

    Raises:
        ValueError: hotcoco is not installed.
    """
    if find_spec("hotcoco") is None:
        raise ValueError("--only figures needs hotcoco: pip install hotcoco.")
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        truth = COCO(str(simulate(Path(folder), settings.images, settings.classes[0])))
    content, results = copy.deepcopy(truth.dataset), simulate_detections(truth)
    case = f"{settings.images} images, K = {settings.classes[0]}, {len(results)} detections"
    for kind in ("bbox", "segm"):
        steps = {
            "pycocotools": partial(by_pycocotools, truth, results, kind),
            "hotcoco": partial(by_hotcoco, content, results, kind),
        }
        yield compare(f"figures, {kind}", case, steps, settings.repeats, torch.device("cpu"))


def by_pycocotools(truth: COCO, results: list[dict], kind: str) -> list[float]:
    """Return AP and its like of "bbox" or "segm", as Detectron2 computes them."""
    with redirect_stdout(io.StringIO()):
        return _evaluate_predictions_on_coco(truth, results, kind, cocoeval_fn=COCOeval).stats[:6].tolist()


def by_hotcoco(content: dict, results: list[dict], kind: str) -> list[float]:
    """Return the same of this project's evaluation."""
    with redirect_stdout(io.StringIO()):
        return [*evaluate_coco(content, results, kind, category_ids(content, {})).figures.values()]


def simulate_detections(truth: COCO) -> list[dict]:
    """Some of each object, a little beside it, three of four under its name."""
    rng, categories = np.random.default_rng(0), truth.getCatIds()
    objects = [*truth.anns.values()] * DETECTIONS
    boxes = np.array([annotation["bbox"] for annotation in objects])
    boxes += rng.integers(0, 9, size=boxes.shape)
    masks = mask.frPyObjects(outlines(boxes), *SIZE[::-1])
    return [
        {"image_id": annotation["image_id"], "bbox": box, "segmentation": run_lengths, "score": rng.random(),
         "category_id": annotation["category_id"] if rng.random() < 0.75 else int(rng.choice(categories))}
        for annotation, box, run_lengths in zip(objects, boxes.tolist(), masks, strict=True)
    ]  # fmt: skip

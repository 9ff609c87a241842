"""COCO's figures of detections: how long they take."""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .data import SIZE, outlines, simulate
from .measure import Row, compare
from .settings import Settings

DETECTIONS = 2
"""Of each object."""


def figures(settings: Settings) -> Iterator[list[Row]]:
    """pycocotools and faster-coco-eval, of simulated detections, boxes and masks; reading files is not in it.

    Raises:
        ValueError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval.core.faster_eval_api import COCOeval as FasterCOCOeval
    except ImportError as error:
        raise ValueError(
            f"--only figures needs faster-coco-eval (pip install faster-coco-eval): {error}"
        ) from None
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        truth = COCO(str(simulate(Path(folder), settings.images, settings.classes[0])))
        detections = truth.loadRes(simulate_detections(truth))
    case = f"{settings.images} images, K = {settings.classes[0]}, {len(detections.anns)} detections"
    for kind in ("bbox", "segm"):
        steps = {
            name: partial(evaluate, implementation, truth, detections, kind)
            for name, implementation in (("pycocotools", COCOeval), ("faster-coco-eval", FasterCOCOeval))
        }
        yield compare(f"figures, {kind}", case, steps, settings.repeats, torch.device("cpu"))


def evaluate(implementation: type[COCOeval], truth: COCO, detections: COCO, kind: str) -> np.ndarray:
    """The twelve figures of "bbox" or "segm"."""
    with redirect_stdout(io.StringIO()):
        evaluation = implementation(truth, detections, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


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

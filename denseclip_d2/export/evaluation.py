from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances

from ..data.image_io import convert_bgr, read_image
from ..evaluation.build import build_evaluator
from .formats import FORMATS
from .runtimes import Outputs, Run


def evaluate_file(cfg: CfgNode, file: Path, format: str) -> dict[str, dict]:
    """Evaluate an exported file on ``DATASETS.TEST`` with its runtime and Detectron2's evaluators.

    Args:
        file: not for preprocessed images, and not of Panoptic FPN, whose outputs are not merged.
        format: of ``FORMATS``.
    Returns: the evaluators' results, by dataset.
    """
    with FORMATS[format].runtime(file) as run:
        return {name: evaluate_run(cfg, run, name) for name in cfg.DATASETS.TEST}


def evaluate_run(cfg: CfgNode, run: Run, name: str) -> dict:
    """Evaluate the outputs of a runtime on a dataset."""
    evaluator = build_evaluator(cfg, name, str(Path(cfg.OUTPUT_DIR, "inference", name)))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        images = image_as_input(record["file_name"], cfg)
        evaluator.process([record], [_as_detectron2(cfg, run(images), images.shape[1:3])])
    return evaluator.evaluate()


def image_as_input(file: str, cfg: CfgNode) -> np.ndarray:
    """Read an image as (1, H, W, 3) uint8, channels as the model takes them."""
    return np.ascontiguousarray(convert_bgr(read_image(file), cfg.INPUT.FORMAT))[None]


def _as_detectron2(cfg: CfgNode, given: Outputs, size: tuple[int, ...]) -> dict:
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    if "labels" in tensors:
        return {"sem_seg": F.one_hot(tensors["labels"][0], cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES).movedim(2, 0)}
    boxes = tensors["boxes"]
    found = Instances(
        size, pred_boxes=Boxes(boxes), scores=tensors["scores"], pred_classes=tensors["classes"]
    )
    if "masks" in tensors:
        masks = tensors["masks"]
        found.pred_masks = masks if masks.dtype == torch.bool else paste_masks_in_image(masks, boxes, size)
    return {"instances": found}

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances

from ..data.class_names import class_names_of_datasets, clean_class_names, get_class_names
from ..data.image_io import convert_bgr, read_image
from ..data.tasks import num_classes_section
from ..export import FORMATS
from ..export.names import encoded_names, given_names, names_file, prompt_of, takes_text
from ..export.runtimes import Outputs, Run
from .build import build_evaluator
from .seen import with_seen_and_unseen


def evaluate_file(cfg: CfgNode, file: Path, format: str) -> dict[str, dict]:
    """Evaluate an exported file on ``DATASETS.TEST`` with its runtime and Detectron2's evaluators.

    A file that takes text embeddings gets those of each dataset's names, by the file of their encoder.

    Args:
        file: not for preprocessed images, and not of Panoptic FPN, whose outputs are not merged.
        format: of ``FORMATS``.
    Returns: the evaluators' results, by dataset.
    """
    with FORMATS[format].runtime(file) as run:
        if not takes_text(cfg):
            return {name: evaluate_run(cfg, run, name) for name in cfg.DATASETS.TEST}
        with FORMATS[format].runtime(names_file(file)) as encode:
            return {name: _evaluate_with_names(cfg, run, encode, name) for name in cfg.DATASETS.TEST}


def _evaluate_with_names(cfg: CfgNode, run: Run, encode: Run, name: str) -> dict:
    names, learned = class_names_of_datasets(cfg, [name]), cfg.MODEL.DENSECLIP.PROMPT.LEARNED_NAME
    given, added = given_names(cfg, names)
    text = encoded_names(encode, given, prompt_of(cfg))
    # The learned name is the file's last class, and may be any of the dataset's, or none.
    places = np.array([names.index(x) if x in names else len(names) for x in (*given, *added)])
    own = cfg.clone()
    own.defrost()
    own.MODEL[num_classes_section(cfg)].NUM_CLASSES = int(places.max()) + 1

    def run_with_names(images: np.ndarray) -> Outputs:
        found = run(images, text)
        return found | {key: places[found[key]] for key in ("labels", "classes") if key in found}

    results = evaluate_run(own, run_with_names, name)
    trained = clean_class_names(get_class_names(cfg), synonyms=True)
    return with_seen_and_unseen(results, trained, {learned})


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

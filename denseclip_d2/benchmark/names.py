"""Names at test time: a predictor that is given names in each call, beside a model built with the names."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.config import CfgNode

from ..builder import build_model
from ..inference import Predictor
from .detectors import candidate_configs, class_names
from .measure import Measurement, compare
from .settings import Settings, threads, with_values

AGNOSTIC = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True)
TEXT = ("MODEL.DENSECLIP.CLASSIFIER", "text", "MODEL.DENSECLIP.SCORE_MAP.CONCAT", "text", *AGNOSTIC)
NAMES = 64


def names(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare a predictor that is given names in each call with one whose model was built with them.

    Both have the same random weights. The names were encoded before.
    """
    for case in settings.sweep():
        image = np.random.default_rng(0).integers(0, 256, (*case.size, 3), dtype=np.uint8)
        own, other = class_names(case.classes), 150 if case.classes == 80 else 80
        with TemporaryDirectory() as folder, threads(case.threads):
            weights = Path(folder, "model.pth")
            torch.save({"model": build_model(_config(settings, case.classes, "")).state_dict()}, weights)
            built, given = (
                Predictor(_config(settings, number, str(weights))) for number in (case.classes, other)
            )
            steps = {"built with the names": partial(built, image), "given": partial(given, image, names=own)}
            yield compare(
                "names at test time", settings.describe(case), steps, settings.repeats, settings.device,
                images=1,
            )  # fmt: skip


def _config(settings: Settings, number: int, weights: str) -> CfgNode:
    cfg = candidate_configs(settings.cfg, number)["DenseCLIP"]
    return with_values(cfg, *TEXT, "INPUT.MIN_SIZE_TEST", 0, "MODEL.WEIGHTS", weights, "DATASETS.TEST", ())

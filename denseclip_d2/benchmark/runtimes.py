"""Detectors with random weights by the runtimes of ``TEST.RUNTIME``."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import nn

from ..export import FORMATS, export_model
from ..inference.runtime import FORMAT_OF, run_file, stored_precision
from .settings import with_values


def runtime_changes() -> dict[str, Sequence[object]]:
    """Return the values of keys of each candidate, by its name."""
    runtime, precision = "TEST.RUNTIME", "TEST.PRECISION"
    values = "MODEL.DENSECLIP.VISUAL.DENSE_FEATURES", "value", "MODEL.DENSECLIP.SCORE_MAP.CONCAT", "text"
    changes: dict[str, Sequence[object]] = {
        "PyTorch": (),
        "PyTorch, bfloat16": (precision, "bfloat16"),
        "ONNX Runtime": (runtime, "onnxruntime"),
        "ONNX Runtime, int8": (runtime, "onnxruntime", precision, "int8"),
    }
    if find_spec("openvino"):
        changes["OpenVINO"] = runtime, "openvino"
        changes["OpenVINO, bfloat16"] = runtime, "openvino", precision, "bfloat16"
        changes["OpenVINO, int8"] = runtime, "openvino", precision, "int8"
        changes["and values, text"] = *changes["OpenVINO, int8"], *values
    return changes


def by_unverified_file(cfg: CfgNode, weights: dict, model: nn.Module, batch: list[dict]) -> None:
    """Run a model with random weights in ``TEST.RUNTIME``. Agreement in int8 asks for trained weights.

    Args:
        weights: the state dict of the model as it was built.
        batch: images, which int8 is calibrated on.
    """
    format = FORMAT_OF[cfg.TEST.RUNTIME]
    with TemporaryDirectory() as folder:
        stored = Path(folder, "model.pth")
        torch.save({"model": weights}, stored)
        images = [str(Path(folder, f"{i}.png")) for i in range(len(batch))]
        for x, path in zip(batch, images, strict=True):
            Image.fromarray(x["image"].movedim(0, 2).numpy()).save(path)
        file = Path(folder, FORMATS[format].file)
        export_model(
            with_values(cfg, "MODEL.WEIGHTS", str(stored)), file, format, preprocessed=True,
            paste_masks=False, precision=stored_precision(cfg), images=images, verified=False,
        )  # fmt: skip
        run_file(cfg, model, file)
        model(batch)  # by then the runtime has read the file

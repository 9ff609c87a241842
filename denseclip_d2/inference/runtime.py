"""Detectors by the runtime of an exported file."""

import hashlib
import json
import logging
import weakref
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, PanopticFPN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import get_cache_dir
from torch import nn

from ..builder import class_names_of
from ..export import FORMATS, export_model
from ..export.names import takes_text
from ..export.runtimes import Run, onnx_runtime, openvino_runtime
from ..utils.safetensors_file import sha256
from ..version import __version__

logger = logging.getLogger(__name__)

FORMAT_OF = {"onnxruntime": "onnx", "openvino": "openvino"}
"""The format of ``tools/export_model.py`` for each ``TEST.RUNTIME``."""


def run_in_runtime(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Replace the forward pass of a detector by its exported file in ``TEST.RUNTIME``, in place.

    The file is exported and verified once for each model, and kept in iopath's cache folder
    (``FVCORE_CACHE``). Outputs agree as :func:`export_model` says. Names that are set later are found, and
    score maps of names take a forward pass of the backbone by PyTorch.

    Args:
        cfg: its ``MODEL.WEIGHTS`` are those of the model.
        model: in evaluation mode.
    Returns: the model.

    Raises:
        ValueError, FileNotFoundError: it is no detector, is on a GPU, or cannot be exported; a package is
            missing.
    """
    if not cfg.TEST.RUNTIME:
        return model
    if not isinstance(model, DenseDetector | GeneralizedRCNN) or isinstance(model, PanopticFPN):
        raise ValueError(
            f"TEST.RUNTIME {cfg.TEST.RUNTIME!r} runs detectors of boxes and masks, and this model is a "
            f"{type(model).__name__}. Set it to ''. tools/export_model.py exports segmentors."
        )
    if cfg.MODEL.DEVICE != "cpu":
        raise ValueError(
            f"TEST.RUNTIME {cfg.TEST.RUNTIME!r} runs on the CPU, and MODEL.DEVICE is {cfg.MODEL.DEVICE!r}. "
            "Set MODEL.DEVICE to cpu, or TEST.RUNTIME to ''."
        )
    return run_file(cfg, model, _file(cfg, model))


def run_file(cfg: CfgNode, model: nn.Module, file: Path) -> nn.Module:
    """Replace the forward pass of a detector by its exported file, in place, as of :func:`run_in_runtime`.

    Args:
        file: ONNX, of preprocessed images and unpasted masks.
    """
    stack = ExitStack()
    weakref.finalize(model, stack.close)  # the runtime ends with the model
    run = stack.enter_context(_runtime(cfg)(file))
    model.forward = partial(_forward, weakref.proxy(model), run, takes_text(cfg))
    return model


def _file(cfg: CfgNode, model: nn.Module) -> Path:
    """Return the exported file of a model. It is written if it does not exist."""
    format, precision = FORMAT_OF[cfg.TEST.RUNTIME], stored_precision(cfg)
    FORMATS[format].check_packages()
    weights = PathManager.get_local_path(cfg.MODEL.WEIGHTS.partition("?")[0])
    own = cfg.clone()
    own.defrost()
    own.MODEL.WEIGHTS, own.TEST.RUNTIME, own.TEST.PRECISION = sha256(weights), "", ""
    said = [own.MODEL.dump(), own.INPUT.dump(), own.TEST.dump(), class_names_of(model, cfg), __version__]
    said += [format, precision, *(cfg.DATASETS.TRAIN if precision == "int8" else ())]
    key = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]
    file = Path(get_cache_dir(), "denseclip_d2", key, FORMATS[format].file)
    if not file.exists():
        logger.info("Exporting the model for %s, in %s, to %s, once.", cfg.TEST.RUNTIME, precision, file)
        file.parent.mkdir(parents=True, exist_ok=True)
        result = export_model(cfg, file, format, preprocessed=True, paste_masks=False, precision=precision)
        logger.info("Verified %s", result)
    return file


def stored_precision(cfg: CfgNode) -> str:
    """Return the precision of the file for ``TEST.PRECISION``, of ``EXPORT_PRECISIONS``."""
    return "int8" if cfg.TEST.PRECISION == "int8" else "float32"


def _runtime(cfg: CfgNode) -> Any:
    """Return what runs a file. OpenVINO computes in bfloat16 where the processor does, if it may."""
    if cfg.TEST.RUNTIME == "onnxruntime":
        return onnx_runtime
    return partial(openvino_runtime, hinted=cfg.TEST.PRECISION == "float32")


@torch.no_grad()
def _forward(model: Any, run: Run, takes_text: bool, inputs: list[dict]) -> list[dict]:
    """Return what a detector of Detectron2 returns for inputs."""
    text = [model.backbone.language.text_embeddings.numpy()] if takes_text else []
    return [{"instances": _instances(model, run, text, x)} for x in inputs]


def _instances(model: Any, run: Run, text: list, x: dict) -> Instances:
    pixels = (x["image"] - model.pixel_mean) / model.pixel_std
    found = {name: torch.from_numpy(y) for name, y in run(pixels[None].numpy(), *text).items()}
    instances = Instances(
        pixels.shape[1:],
        pred_boxes=Boxes(found["boxes"]),
        scores=found["scores"],
        pred_classes=found["classes"],
    )
    if "masks" in found:
        instances.pred_masks = found["masks"][:, None]
    return detector_postprocess(instances, x.get("height", pixels.shape[1]), x.get("width", pixels.shape[2]))

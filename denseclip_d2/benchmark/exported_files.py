"""Exported files in their runtimes, compared with their model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..data.image_io import convert_bgr
from ..evaluation.exported_file import image_as_input
from ..export import EXPORT_PRECISIONS, FORMATS, export_model
from ..export.names import encoded_names, given_names, names_file, prompt_of, takes_text
from ..export.runtimes import Run, openvino_runtime
from ..inference import Predictor
from .measure import Measurement, compare
from .settings import Settings, with_values

IMAGES = 40
"""Images of the test set in a timed step."""


def exported(settings: Settings) -> Iterator[list[Measurement]]:
    """Compare ONNX files of every precision with their model, in ONNX Runtime and OpenVINO if installed."""
    cfg = with_values(settings.cfg, "MODEL.DEVICE", "cpu")
    name = cfg.DATASETS.TEST[0]
    images = [image_as_input(x["file_name"], cfg) for x in islice(DatasetCatalog.get(name), IMAGES)]
    predictor = Predictor(cfg)

    def eager(image: np.ndarray) -> object:
        return predictor(convert_bgr(image[0], predictor.input_format))  # reversed again: it takes BGR

    with TemporaryDirectory() as folder, ExitStack() as stack:
        runs: dict[str, Callable] = {"eager": eager}
        for precision in EXPORT_PRECISIONS:
            file = Path(folder) / f"{precision}.onnx"
            export_model(cfg, file, "onnx", precision=precision)
            text = _text(cfg, file, predictor.class_names) if takes_text(cfg) else []
            for runtime, opened in _runtimes(precision).items():
                runs[f"{precision}, {runtime}"] = partial(_run_with, stack.enter_context(opened(file)), text)
        steps = {candidate: partial(_run_all, run, images) for candidate, run in runs.items()}
        case = f"{name}, {len(images)} images"
        yield compare("exported", case, steps, settings.repeats, torch.device("cpu"), images=len(images))


def _text(cfg: CfgNode, file: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Return the second input of a file that takes names, encoded once."""
    with FORMATS["onnx"].runtime(names_file(file)) as encode:
        return [encoded_names(encode, given_names(cfg, names)[0], prompt_of(cfg))]


def _run_with(run: Run, text: list[np.ndarray], image: np.ndarray) -> object:
    return run(image, *text)


def _run_all(run: Callable[[np.ndarray], object], images: list[np.ndarray]) -> None:
    for image in images:
        run(image)


def _runtimes(precision: str) -> dict[str, Callable]:
    """Return what opens a file of a precision, by name."""
    runtimes: dict[str, Callable] = {"ONNX Runtime": FORMATS["onnx"].runtime}
    if find_spec("openvino"):
        runtimes["OpenVINO"] = openvino_runtime
        if precision == "float32":
            runtimes["OpenVINO by its own choice"] = partial(openvino_runtime, hinted=False)
    return runtimes

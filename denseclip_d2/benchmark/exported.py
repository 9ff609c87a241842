"""Exported files by their runtimes, beside the model they are of."""

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.data import DatasetCatalog

from ..data.pictures import ordered
from ..engine import Trainer
from ..export import FORMATS, PRECISIONS, export_model
from ..export.evaluation import evaluate_run, picture_as_input
from ..export.runtimes import Run, openvino_runtime
from ..inference import Predictor
from .measure import Row, compare
from .settings import Settings, with_value

PICTURES = 40
"""In a run that is timed."""


def exported(settings: Settings) -> Iterator[list[Row]]:
    """ONNX files of every precision, by ONNX Runtime and, where it is installed, OpenVINO."""
    cfg = with_value(settings.cfg, "MODEL.DEVICE", "cpu")
    name = cfg.DATASETS.TEST[0]
    cfg = with_value(cfg, "DATASETS.TEST", (name,))
    with TemporaryDirectory() as folder, ExitStack() as stack:
        cfg = with_value(cfg, "OUTPUT_DIR", f"{folder}/evaluated")
        runs: dict[str, Run] = {}
        predictor = Predictor(cfg)
        with redirect_stdout(io.StringIO()):  # pycocotools prints
            notes = {"eager": _figures(Trainer.test(cfg, predictor.model))}
        for precision in PRECISIONS:
            file = Path(folder) / f"{precision}.onnx"
            export_model(cfg, file, "onnx", precision=precision)
            for runtime, opened in _runtimes(precision).items():
                contender = f"{precision}, {runtime}"
                runs[contender] = stack.enter_context(opened(file))
                with redirect_stdout(io.StringIO()):
                    figures = _figures(evaluate_run(cfg, runs[contender], name))
                notes[contender] = f"{figures}, {file.stat().st_size / 2**20:.1f} MiB"
        records = [*islice(DatasetCatalog.get(name), PICTURES)]
        pictures = [picture_as_input(record["file_name"], cfg) for record in records]
        steps: dict[str, Callable] = {"eager": partial(_all, partial(_eager, predictor), pictures)}
        steps |= {contender: partial(_all, run, pictures) for contender, run in runs.items()}
        case = f"{name}, {len(pictures)} pictures"
        device = torch.device("cpu")
        yield compare("exported", case, steps, settings.repeats, device, images=len(pictures), notes=notes)


def _runtimes(precision: str) -> dict[str, Callable]:
    """What opens a file of a precision, by name."""
    runtimes: dict[str, Callable] = {"ONNX Runtime": FORMATS["onnx"].runtime}
    if find_spec("openvino"):
        runtimes["OpenVINO"] = openvino_runtime
        if precision == "float32":
            runtimes["OpenVINO by its own choice"] = partial(openvino_runtime, hinted=False)
    return runtimes


def _eager(predictor: Predictor, pictures: np.ndarray) -> object:
    return predictor(ordered(pictures[0], predictor.input_format))  # it takes BGR: turned round again


def _all(run: Callable[[np.ndarray], object], pictures: list[np.ndarray]) -> None:
    for picture in pictures:
        run(picture)


def _figures(results: dict[str, dict]) -> str:
    """The main figures of each task."""
    return ", ".join(
        f"{task} {metric} {values[metric]:.1f}"
        for task, values in results.items()
        for metric in ("AP", "AP50", "mIoU")
        if metric in values
    )

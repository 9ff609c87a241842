"""Exported files, run by runtimes that know nothing of this project."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

INPUT = "pictures"
SILENT = 4

DETECTIONS = ("boxes", "scores", "classes", "masks")
"""The outputs with a row for each detection."""

Outputs = dict[str, np.ndarray]
Run = Callable[[np.ndarray], Outputs]
"""Pictures, see ``WholeModel.forward``, to what a file gives of them, by name."""


@contextmanager
def onnx_runtime(path: Path) -> Iterator[Run]:
    """An ONNX file in ONNX Runtime, on the processor."""
    import onnxruntime  # an extra

    onnxruntime.set_default_logger_severity(SILENT)  # it would say what it raises, in colors
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # one of many classes, without a public name
        raise ValueError(f"ONNX Runtime cannot read the file: {error}") from error
    names = json.loads(session.get_modelmeta().custom_metadata_map["outputs"])

    def run(pictures: np.ndarray) -> Outputs:
        try:
            return dict(zip(names, session.run(names, {INPUT: pictures}), strict=True))
        except Exception as error:
            raise ValueError(f"ONNX Runtime failed at pictures of {pictures.shape}: {error}") from error

    yield run


@contextmanager
def openvino_runtime(path: Path, *, hinted: bool = True) -> Iterator[Run]:
    """An ONNX file in OpenVINO, on the processor, in a process of its own: beside torch it crashes later.

    Args:
        hinted: to compute in float32; left to itself, OpenVINO does so in bfloat16 where the processor can.
    """
    with fresh_process("openvino", path, *(["f32"] if hinted else [])) as answer:

        def run(pictures: np.ndarray) -> Outputs:
            found = answer(pictures)
            if "scores" in found:  # where nothing is detected, R-CNNs give one of score 0, of no class
                real = found["scores"] > 0
                found |= {name: found[name][real] for name in DETECTIONS if name in found}
            return found

        yield run


@contextmanager
def fresh_process(kind: str, path: Path, *more: str) -> Iterator[Run]:
    """A file in a process of its own, which has what it needs alone.

    Args:
        kind, more: of ``KINDS`` in ``fresh_process.py``, and what it takes beside the file.
    """
    script = Path(__file__).with_name("fresh_process.py")
    # -P: what stands beside the script is not to be found by its imports.
    command = [sys.executable, "-P", "-W", "ignore", str(script), kind, str(path), *more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        stdin, stdout = process.stdin, process.stdout

        def run(pictures: np.ndarray) -> Outputs:
            try:
                pickle.dump(pictures, stdin)
                stdin.flush()
                return pickle.load(stdout)
            except (EOFError, BrokenPipeError):
                raise ValueError(f"{kind} failed at pictures of shape {pictures.shape}; see above.") from None

        yield run

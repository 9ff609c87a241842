"""Runtimes of exported files."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

INPUT = "images"
SILENT = 4

DETECTIONS = ("boxes", "scores", "classes", "masks")
"""The outputs with one row per detection."""

Outputs = dict[str, np.ndarray]
Run = Callable[..., Outputs]
"""Returns a file's outputs by name for its inputs, arrays in their order."""


@contextmanager
def onnx_runtime(path: Path) -> Iterator[Run]:
    """Run an ONNX file in ONNX Runtime on the CPU."""
    import onnxruntime  # an extra

    onnxruntime.set_default_logger_severity(SILENT)  # it raises its errors as well
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no public names
        raise ValueError(f"ONNX Runtime cannot read the file: {error}") from error
    names = json.loads(session.get_modelmeta().custom_metadata_map["outputs"])
    own = [x.name for x in session.get_inputs()]

    def run(*inputs: np.ndarray) -> Outputs:
        try:
            return dict(zip(names, session.run(names, dict(zip(own, inputs, strict=True))), strict=True))
        except Exception as error:
            raise ValueError(f"ONNX Runtime failed for {_shapes(inputs)}: {error}") from error

    yield run


@contextmanager
def openvino_runtime(path: Path, *, hinted: bool = True) -> Iterator[Run]:
    """Run an ONNX file in OpenVINO on the CPU, in another process, for it crashes beside torch.

    Args:
        hinted: compute in float32; False: in OpenVINO's choice, which is bfloat16 on some CPUs.
    """
    with runtime_subprocess("openvino", path, *(["f32"] if hinted else [])) as answer:

        def run(*inputs: np.ndarray) -> Outputs:
            found = answer(*inputs)
            if "scores" in found:  # R-CNNs without detections return one of score 0
                real = found["scores"] > 0
                found |= {name: found[name][real] for name in DETECTIONS if name in found}
            return found

        yield run


@contextmanager
def runtime_subprocess(kind: str, path: Path, *more: str) -> Iterator[Run]:
    """Run a file in a new process by ``runtime_subprocess.py``.

    Args:
        kind, more: of ``KINDS``, and its arguments beside the file.
    """
    script = Path(__file__).with_name("runtime_subprocess.py")
    # -P: imports must not find the modules beside the script.
    command = [sys.executable, "-P", "-W", "ignore", str(script), kind, str(path), *more]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        stdin, stdout = process.stdin, process.stdout

        def run(*inputs: np.ndarray) -> Outputs:
            try:
                pickle.dump(inputs, stdin)
                stdin.flush()
                return pickle.load(stdout)
            except (EOFError, BrokenPipeError):
                raise ValueError(f"{kind} failed for {_shapes(inputs)}; see above.") from None

        yield run


def _shapes(inputs: Iterable[np.ndarray]) -> str:
    return f"inputs of {' and '.join(str(x.shape) for x in inputs)}"

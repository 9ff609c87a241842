"""The formats that models are exported in."""

import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from detectron2.export import TracingAdapter
from torch import Tensor, nn

from .runtimes import INPUT, Run, fresh_process, onnx_runtime, openvino_runtime
from .whole import ASKING_NOTHING, AXES, WHOLE, WholeModel

OPSET = 17  # ROIAlign as Detectron2 has it needs 16
MOST = 1024  # pictures, and strides along a side, for which torch.export sees that memory can be counted


@dataclass(frozen=True)
class Format:
    """How a model becomes a file, and the file is run.

    Attributes:
        file: the file's name.
        packages: what it takes beside torch.
        content: of the file: from a model, an example of its input, and what to say of it. ``outputs`` (JSON)
            is added to that: their names in their order.
        runtime: what the file is for.
        asks_nothing: whether models are followed without their values, which must be given prepared pictures,
            whose sides are multiples of the backbone's stride.
        any_precision: whether weights may be stored in fewer bits.
    """

    file: str
    packages: tuple[str, ...]
    content: Callable[[WholeModel, Tensor, dict[str, str]], bytes]
    runtime: Callable[[Path], AbstractContextManager[Run]]
    asks_nothing: bool = False
    any_precision: bool = False

    @property
    def systems(self) -> Mapping[type[nn.Module], type[WholeModel]]:
        """What is exported of which of Detectron2's systems."""
        return ASKING_NOTHING if self.asks_nothing else WHOLE

    def check_packages(self) -> None:
        """
        Raises:
            ValueError: one of :attr:`packages` is not installed.
        """
        if missing := [name for name in self.packages if not find_spec(name)]:
            raise ValueError(f"{self.file} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def _onnx(whole: WholeModel, example: Tensor, about: dict[str, str]) -> bytes:
    import onnx  # an extra

    adapter, names = _traceable(whole, example)
    row = 2 if whole.prepared else 1
    sides = {0: "pictures"} if whole.any_batch else {}
    sides |= {row: "height", row + 1: "width"}
    content = io.BytesIO()
    with _quiet():
        # torch's newer exporter, by torch.export, has no way around sizes that depend on what is detected.
        torch.onnx.export(
            adapter, (example,), content,  # type: ignore[arg-type]  # which takes files too
            dynamo=False, opset_version=OPSET, input_names=[INPUT],
            output_names=names, dynamic_axes={INPUT: sides, **{name: AXES[name] for name in names}},
        )  # fmt: skip
    model = onnx.load_from_string(content.getvalue())
    onnx.helper.set_model_props(model, {**about, "outputs": json.dumps(names)})
    return model.SerializeToString()


def _torchscript(whole: WholeModel, example: Tensor, about: dict[str, str]) -> bytes:
    adapter, names = _traceable(whole, example)
    content = io.BytesIO()
    with _quiet():
        traced = torch.jit.freeze(torch.jit.trace(adapter, (example,), check_trace=False))  # norms are fused
    torch.jit.save(traced, content, _extra_files={**about, "outputs": json.dumps(names)})
    return content.getvalue()


def _torch_export(whole: WholeModel, example: Tensor, about: dict[str, str]) -> bytes:
    _, names = _traceable(whole, example)
    stride = whole.model.backbone.size_divisibility
    pictures, rows, columns = (torch.export.Dim(name, max=MOST) for name in ("pictures", "rows", "columns"))
    sizes = {0: pictures, 2: stride * rows, 3: stride * columns}
    # Lengths of 1, of a batch or of a level's sides, would be taken for constants.
    side = math.lcm(stride, *(x.stride for x in whole.model.backbone.output_shape().values()))
    traced = example.new_zeros(2, 3, 2 * side, 3 * side)
    with _quiet(), torch.no_grad():
        program = torch.export.export(whole, (traced,), dynamic_shapes=(sizes,))
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={**about, "outputs": json.dumps(names)})
    return content.getvalue()


FORMATS = {
    "onnx": Format("model.onnx", ("onnx", "onnxruntime"), _onnx, onnx_runtime, any_precision=True),
    "openvino": Format(  # which reads ONNX files
        "model.onnx", ("onnx", "onnxruntime", "openvino"), _onnx, openvino_runtime, any_precision=True
    ),
    "torchscript": Format("model.ts", (), _torchscript, partial(fresh_process, "torchscript")),
    "torch_export": Format(
        "model.pt2", (), _torch_export, partial(fresh_process, "torch_export"), asks_nothing=True
    ),
}


def _traceable(whole: WholeModel, example: Tensor) -> tuple[TracingAdapter, list[str]]:
    """A model that gives a tuple, and the names of what is in it."""
    adapter = TracingAdapter(whole, (example,)).eval()
    adapter(example)
    return adapter, adapter.outputs_schema.keys


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what tracing says of constants, which the verification sees to, and of its own age."""
    tracing = logging.getLogger("torch.fx._symbolic_trace")
    level = tracing.level
    tracing.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tracing.setLevel(level)

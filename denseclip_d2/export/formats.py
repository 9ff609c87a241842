"""The formats of exported models."""

import io
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from detectron2.export import TracingAdapter
from torch import Tensor, nn

from ..builder import check_compiler
from .branchless import without_branches
from .names import TEXT
from .programs import Traceable, aoti, executorch, litert, quiet, torch_export
from .runtimes import Run, onnx_runtime, openvino_runtime, runtime_subprocess
from .traceable import AXES, STATIC_GRAPH, TRACEABLE, TraceableModel

OPSET = 17  # Detectron2's ROIAlign needs 16
INT64 = 7  # of onnx.TensorProto


@dataclass(frozen=True)
class Format:
    """How a model becomes a file, and how the file is run.

    Attributes:
        file: the file's name.
        packages: required packages beside torch.
        content: makes the file's content from a model, example inputs and metadata. It adds the metadata
            ``outputs`` (JSON), the names of the outputs in their order.
        runtime: runs the file.
        static_graph: whether a model must have no data-dependent control flow. Images are then preprocessed,
            and their sides are multiples of the backbone's stride.
        onnx: whether the file is ONNX. It may have any of ``EXPORT_PRECISIONS`` and end at the heads.
        sizes: of images, "any", one that is "given", or "either".
        compiled: whether the export needs a C++ compiler.
    """

    file: str
    packages: tuple[str, ...]
    content: Callable[[Traceable, tuple[Tensor, ...], dict[str, str]], bytes]
    runtime: Callable[[Path], AbstractContextManager[Run]]
    static_graph: bool = False
    onnx: bool = False
    sizes: Literal["any", "given", "either"] = "any"
    compiled: bool = False

    def systems(self, heads: bool = False) -> Mapping[type[nn.Module], type[TraceableModel]]:
        """Return the wrappers of Detectron2's systems, of dense detectors up to their heads if asked for."""
        return STATIC_GRAPH if heads or self.static_graph else TRACEABLE

    def check_packages(self) -> None:
        """
        Raises:
            ValueError: one of :attr:`packages` or the compiler is not installed.
        """
        if missing := [name for name in self.packages if not find_spec(name)]:
            raise ValueError(f"{self.file} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
        if self.compiled:
            check_compiler(self.file, "choose another --format")


def _onnx(whole: Traceable, example: tuple[Tensor, ...], about: dict[str, str]) -> bytes:
    import onnx  # an extra

    adapter, names = _traceable(whole, example)
    axes = {name: AXES[name] for name in names}
    if fixed := getattr(whole, "size", None):
        axes = {name: {i: x for i, x in own.items() if x == "detections"} for name, own in axes.items()}
    if TEXT in whole.inputs and "score_map" in axes:
        axes["score_map"] = {**axes["score_map"], 1: "classes"}
    content = io.BytesIO()
    with quiet(), without_branches():
        # torch's newer exporter does not support sizes that depend on the number of detections.
        torch.onnx.export(
            adapter, example, content,  # type: ignore[arg-type]  # which takes files too
            dynamo=False, opset_version=OPSET, input_names=list(whole.inputs),
            output_names=names, dynamic_axes={**whole.inputs, **axes},
        )  # fmt: skip
    model = onnx.load_from_string(content.getvalue())
    if fixed and find_spec("onnxslim"):
        model = import_module("onnxslim").slim(model)
    _compare_integers(model.graph)
    onnx.helper.set_model_props(model, {**about, "outputs": json.dumps(names)})
    return model.SerializeToString()


def _compare_integers(graph: Any) -> None:
    """Make Max and Min of each Clip of integers, which some runtimes lack."""
    bounds = {x.output[0]: x.attribute[0].t for x in graph.node if x.op_type == "Constant"}
    bounds |= {x.name: x for x in graph.initializer}
    for node in graph.node:
        given = [name for name in node.input[1:] if name]
        if (
            node.op_type == "Clip"
            and len(given) == 1
            and given[0] in bounds
            and bounds[given[0]].data_type == INT64
        ):
            node.op_type = "Max" if node.input[1] else "Min"
            node.input[1:] = given


def _torchscript(whole: Traceable, example: tuple[Tensor, ...], about: dict[str, str]) -> bytes:
    adapter, names = _traceable(whole, example)
    content = io.BytesIO()
    with quiet():
        traced = torch.jit.freeze(torch.jit.trace(adapter, example, check_trace=False))  # norms are fused
    torch.jit.save(traced, content, _extra_files={**about, "outputs": json.dumps(names)})
    return content.getvalue()


FORMATS = {
    "onnx": Format(
        "model.onnx", ("onnx", "onnxruntime"), _onnx, onnx_runtime, onnx=True, sizes="either"
    ),
    "openvino": Format(  # which reads ONNX files
        "model.onnx", ("onnx", "onnxruntime", "openvino"), _onnx, openvino_runtime, onnx=True, sizes="either"
    ),
    "torchscript": Format("model.ts", (), _torchscript, partial(runtime_subprocess, "torchscript")),
    "torch_export": Format(
        "model.pt2", (), torch_export, partial(runtime_subprocess, "torch_export"),
        static_graph=True, sizes="either",
    ),
    "aoti": Format(
        "model.aoti.pt2", (), aoti, partial(runtime_subprocess, "aoti"),
        static_graph=True, sizes="either", compiled=True,
    ),
    "executorch": Format(
        "model.pte", ("executorch",), executorch, partial(runtime_subprocess, "executorch"),
        static_graph=True, sizes="given",
    ),
    "litert": Format(
        "model.tflite", ("litert_torch",), litert, partial(runtime_subprocess, "litert"),
        static_graph=True, sizes="given",
    ),
}  # fmt: skip


def _traceable(whole: Traceable, example: tuple[Tensor, ...]) -> tuple[TracingAdapter, list[str]]:
    """Return a model that returns a tuple, and the names of its outputs."""
    adapter = TracingAdapter(whole, example).eval()
    adapter(*example)
    return adapter, adapter.outputs_schema.keys

"""ONNX files of reduced precision."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .runtimes import SILENT

WEIGHTED = ("Conv", "Gemm", "MatMul")
RELUS = ("Relu", "Clip")
PREDICTORS = ("anchor_deltas", "bbox_pred", "cls_score", "ctrness", "objectness_logits", "predictor")
"""Detectron2's names of the layers that predict. They stay float32, for 256 steps are too few."""


Inputs = Iterable[Sequence[np.ndarray]]
"""Calibration inputs, each time one array for each input of the file."""


def store_float16(content: bytes, inputs: Inputs = ()) -> bytes:
    """Store weights as float16. Runtimes convert them to float32 when they load the file.

    Raises:
        ValueError: a weight is out of the range of float16.
    """
    import onnx  # an extra

    model, largest = onnx.load_from_string(content), float(np.finfo(np.float16).max)
    used, casts = {node.input[1] for node in _weighted(model)}, []
    used |= {node.input[0] for node in model.graph.node if node.op_type == "Gather"}  # token embeddings
    for tensor in model.graph.initializer:
        if tensor.name not in used or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        weights, name = onnx.numpy_helper.to_array(tensor), tensor.name
        if not np.abs(weights).max(initial=0) <= largest:
            raise ValueError(
                f"--precision float16 has values up to {largest:.0f}, and {name} has "
                f"{np.abs(weights).max():.4g}. Choose another --precision."
            )
        tensor.CopyFrom(onnx.numpy_helper.from_array(weights.astype(np.float16), f"{name}_float16"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()


def quantize_int8(content: bytes, inputs: Inputs) -> bytes:
    """Compute all layers but the predictors in 8 bits, by ONNX Runtime's static quantization.

    ReLUs of these layers become the range of their outputs, so that no activation is rounded twice.

    Args:
        inputs: as the file takes them. The 256 steps span the range of each layer's outputs for them.
    """
    import onnx  # extras
    from onnxruntime.quantization import QuantType, quantize_static

    model = onnx.load_from_string(content)
    reader = _Reader([x.name for x in model.graph.input], inputs)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it would advise a fusion that is done already
    try:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            _fuse(content, file)
            fused = onnx.load(file)
            layers = [x for x in _weighted(fused) if not any(name in x.name for name in PREDICTORS)]
            outputs = {node.output[0] for node in layers}
            relus = [x for x in fused.graph.node if x.op_type in RELUS and x.input[0] in outputs]
            quantize_static(
                fused, file, reader, nodes_to_quantize=[node.name for node in [*layers, *relus]],
                op_types_to_quantize=[*WEIGHTED, *RELUS], per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
            quantized = onnx.load(file)
    finally:
        root.setLevel(level)
    # With inferred shapes, ONNX Runtime fuses reshapings, which then fail for levels without candidates.
    del quantized.graph.value_info[:]
    # The fusion loses the first, and adds domains of ONNX Runtime to the second.
    for field in ("metadata_props", "opset_import"):
        quantized.ClearField(field)
        getattr(quantized, field).extend(getattr(model, field))
    return quantized.SerializeToString()


def _fuse(content: bytes, file: Path) -> None:
    """Write an ONNX model whose norms are fused into convolutions, also those of timm's models."""
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(file)
    options.log_severity_level = SILENT
    # With folded constants, OpenVINO fails in attention on several threads.
    InferenceSession(
        content, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )


EXPORT_PRECISIONS: dict[str, Callable[[bytes, Inputs], bytes]] = {
    "float32": lambda content, inputs: content,
    "float16": store_float16,
    "int8": quantize_int8,
}
"""Functions of an ONNX file in float32 and of calibration inputs."""


class _Reader:
    """A ``CalibrationDataReader`` for ONNX Runtime."""

    def __init__(self, names: Sequence[str], inputs: Inputs):
        self.inputs = (dict(zip(names, own, strict=True)) for own in inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)


def _weighted(model: Any) -> list[Any]:
    """Return the nodes of an ONNX model that have weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [x for x in model.graph.node if x.op_type in WEIGHTED and x.input[1] in weights]

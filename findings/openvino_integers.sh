#!/usr/bin/env bash
# ONNX has int64 and float64. OpenVINO computes both in 32 bits on a CPU, and its outputs still say 64. Products and
# sums beyond 2**31 wrap around without a warning. Integers beyond 2**24 are divided in float32: n / 1 is not n.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6 || exit 2
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import openvino
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

CASES = (
    ("Mul", np.int64, 100_000, 100_000),
    ("Add", np.int64, 2**31, 5),
    ("Div", np.int64, 2**25 + 1, 1),
    ("Div", np.int64, 2**31 - 1, 3),
    ("Mul", np.float64, 1 / 3, 1.0),
)
TYPES = {np.int64: TensorProto.INT64, np.float64: TensorProto.DOUBLE}


def model(operator, kind):
    """A model of one operator: c = operator(a, b)."""
    a, b, c = (helper.make_tensor_value_info(name, TYPES[kind], [1]) for name in "abc")
    graph = helper.make_graph([helper.make_node(operator, ["a", "b"], ["c"])], "one", [a, b], [c])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


print(f"openvino {version('openvino')}, onnx {version('onnx')}, on the CPU, INFERENCE_PRECISION_HINT f32")
unlike = 0
for operator, kind, a, b in CASES:
    onnx_model, inputs = model(operator, kind), {"a": np.array([a], kind), "b": np.array([b], kind)}
    (right,) = ReferenceEvaluator(onnx_model).run(None, inputs)
    read = openvino.Core().read_model(onnx_model.SerializeToString())
    given = openvino.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)["c"]
    assert given.dtype == right.dtype
    print(f"{operator}({a}, {b}) in {right.dtype}: {given[0]!r}, where ONNX's reference gives {right[0]!r}")
    unlike += bool(given[0] != right[0])
sys.exit(unlike != len(CASES))
PYTHON

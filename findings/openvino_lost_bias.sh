#!/usr/bin/env bash
# A convolution's output that is read twice, a bias for each channel added to it in a node of its own, and then
# QuantizeLinear: OpenVINO leaves the bias out on a CPU if height and width are not fixed. With fixed sizes, or with one
# reader, it is right. OpenVINO makes such a graph itself of a convolution with a bias: it moves the bias into a node,
# and lets later nodes read their sizes from before it.
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
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

CHANNELS = 4
BIAS = 10 * np.arange(CHANNELS, dtype=np.float32)[None, :, None, None]


def model(*, fixed, read_twice):
    """A convolution that copies its input, a bias, and a round trip through 8 bits in steps of 0.5."""
    constants = {
        "weight": np.eye(CHANNELS, dtype=np.float32)[:, :, None, None],
        "bias": BIAS,
        "scale": np.float32(0.5),
        "zero_point": np.uint8(0),
    }
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["convolved"]),
        helper.make_node("Add", ["convolved", "bias"], ["biased"]),
        helper.make_node("QuantizeLinear", ["biased", "scale", "zero_point"], ["in_8_bits"]),
        helper.make_node("DequantizeLinear", ["in_8_bits", "scale", "zero_point"], ["y"]),
    ]
    shape = [1, CHANNELS, *((2, 3) if fixed else ("height", "width"))]
    names = ["y", *(["convolved"] if read_twice else [])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    initializers = [numpy_helper.from_array(np.asarray(x), name) for name, x in constants.items()]
    graph = helper.make_graph(nodes, "biased", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    checker.check_model(made)
    return made


print(f"openvino {version('openvino')}, onnx {version('onnx')}, on the CPU, INFERENCE_PRECISION_HINT f32")
x = np.full((1, CHANNELS, 2, 3), 3, np.float32)
lost = {}
for fixed in (True, False):
    for read_twice in (True, False):
        onnx_model = model(fixed=fixed, read_twice=read_twice)
        right = ReferenceEvaluator(onnx_model).run(["y"], {"x": x})[0]
        assert np.array_equal(right, x + BIAS)
        read = openvino.Core().read_model(onnx_model.SerializeToString())
        given = openvino.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"x": x})["y"]
        what = f"{'fixed' if fixed else 'any'} sizes, convolution read {'twice' if read_twice else 'once'}"
        print(f"{what}: {given[0, :, 0, 0]}, where ONNX's reference gives {right[0, :, 0, 0]}")
        lost[fixed, read_twice] = np.array_equal(given, x)
        assert lost[fixed, read_twice] or np.array_equal(given, right)
as_stated = [case for case, is_lost in lost.items() if is_lost] == [(False, True)]
print("as stated" if as_stated else "not as stated")
sys.exit(not as_stated)
PYTHON

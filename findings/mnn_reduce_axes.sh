#!/usr/bin/env bash
# Since opset 18, ONNX's Reduce operators take their axes as an input, which may be a constant. MNN reads it for
# ReduceMean, ReduceMax and ReduceSum. For ReduceL1, ReduceL2, ReduceSumSquare and ReduceLogSumExp it reduces all axes,
# without a warning: the L2 norm of each pixel's channels becomes one number. In opset 17 the axes are an attribute,
# and MNN is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check MNN==3.6.1 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 || exit 2
PATH="$folder/venv/bin:$PATH" python - <<'PYTHON'
import subprocess
import sys
from importlib.metadata import version

import MNN.expr
import MNN.nn
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

X = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 2, 2)
RIGHT = ("ReduceMean", "ReduceMax", "ReduceSum")
WRONG = ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")


def write_model(operator, opset):
    """Write a model that reduces the channels of x (1, 3, 2, 2), and keeps their axis."""
    names, constants, attributes = ["x"], [], {"keepdims": 1}
    if opset >= 18 or operator == "ReduceSum":
        names, constants = ["x", "axes"], [helper.make_tensor("axes", TensorProto.INT64, [1], [1])]
    else:
        attributes["axes"] = [1]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 2, 2])
    graph = helper.make_graph([helper.make_node(operator, names, ["y"], **attributes)], "one", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, "model.onnx")


def mnn_output():
    convert = ["mnnconvert", "-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel", "model.mnn"]
    subprocess.run(convert, check=True, capture_output=True)
    net = MNN.nn.load_module_from_file("model.mnn", ["x"], ["y"])
    (y,) = net.forward([MNN.expr.const(X, [*X.shape], MNN.expr.NCHW)])
    return np.array(MNN.expr.convert(y, MNN.expr.NCHW).read())


print(f"MNN {version('MNN')}, ONNX Runtime {version('onnxruntime')}, onnx {version('onnx')}; axes [1], keepdims 1")
as_stated = True
for operator in (*RIGHT, *WRONG):
    for opset in (17, 18):
        write_model(operator, opset)
        right = onnxruntime.InferenceSession("model.onnx").run(None, {"x": X})[0]
        given = mnn_output()
        same = given.shape == right.shape and bool(np.allclose(given, right, rtol=1e-4))
        shown = "the same" if same else f"{given.shape} {given.ravel().astype(float).round(2).tolist()}"
        print(f"{operator}, opset {opset}: {right.shape} {right.ravel().astype(float).round(2).tolist()}; MNN: {shown}")
        as_stated &= same == (opset == 17 or operator in RIGHT)
sys.exit(not as_stated)
PYTHON

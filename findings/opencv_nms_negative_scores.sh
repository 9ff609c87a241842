#!/usr/bin/env bash
# ONNX's NonMaxSuppression has an optional score_threshold. Without it, no box is removed for its score: logits of a
# region proposal network may be negative. OpenCV's dnn then removes boxes with scores of 0 and less, without a warning.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check opencv-python-headless==5.0.0.93 onnxruntime==1.32.0 \
  onnx==1.23.2 numpy==2.4.6 || exit 2
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import cv2
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

BOXES = np.array([[[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50], [60, 60, 70, 70]]], np.float32)
SCORES = np.array([[[2.0, -1.0, 0.0, -3.0]]], np.float32)


def model():
    """At most ten of four boxes that do not overlap. There is no score_threshold."""
    inputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 4, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 4]),
    ]
    output = helper.make_tensor_value_info("selected", TensorProto.INT64, ["n", 3])
    constants = [
        helper.make_tensor("most", TensorProto.INT64, [1], [10]),
        helper.make_tensor("iou", TensorProto.FLOAT, [1], [0.5]),
    ]
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou"], ["selected"])
    graph = helper.make_graph([node], "suppression", inputs, [output], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


made, given = model(), {"boxes": BOXES, "scores": SCORES}
file = made.SerializeToString()
net = cv2.dnn.readNetFromONNX(np.frombuffer(file, np.uint8))
for name, array in given.items():
    net.setInput(array, name)
kept = {
    f"onnx {version('onnx')}, reference": ReferenceEvaluator(made).run(None, given)[0],
    f"ONNX Runtime {version('onnxruntime')}": onnxruntime.InferenceSession(file).run(None, given)[0],
    f"OpenCV {cv2.__version__} dnn": net.forward(),
}
print(f"scores {SCORES[0, 0].tolist()}, boxes that do not overlap")
for runtime, selected in kept.items():
    print(f"{runtime}: boxes {[int(box) for _, _, box in selected]}")
right, again, opencv = ([int(box) for _, _, box in selected] for selected in kept.values())
sys.exit(not (right == again == [0, 2, 1, 3] and opencv == [0]))
PYTHON

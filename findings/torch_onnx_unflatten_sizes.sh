#!/usr/bin/env bash
# torch.onnx.export(dynamo=False) with dynamic axes: the sizes of a tensor that unflatten() returned become constants of
# the file, though the file's unflatten itself follows the input. A reshape by tensor.shape then has the traced size. An
# image of swapped sides gets a wrong shape, without an error. With view() in place of unflatten(), the sizes are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.14.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6 || exit 2
venv/bin/python - <<'PYTHON'
import io
import sys
import warnings

import onnx
import onnxruntime
import torch
from torch import nn

warnings.simplefilter("ignore")


class Turned(nn.Module):
    """Flatten the sides of an image, restore them, and reshape by the restored tensor's shape."""

    def __init__(self, by_view):
        super().__init__()
        self.by_view = by_view

    def forward(self, x):
        y = x.flatten(2)
        y = y.view(x.shape[0], -1, *x.shape[2:]) if self.by_view else y.unflatten(2, x.shape[2:])
        return y.reshape(y.shape[0], 3, y.shape[3], y.shape[2])


def shapes(by_view):
    """Return the shape that eager, a trace and an ONNX file give an image whose sides are swapped."""
    model, traced, other = Turned(by_view), torch.randn(1, 3, 4, 5), torch.randn(1, 3, 5, 4)
    content = io.BytesIO()
    axes = {"x": {2: "height", 3: "width"}, "y": {2: "width", 3: "height"}}
    torch.onnx.export(
        model, (traced,), content, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
        dynamic_axes=axes,
    )
    file = onnxruntime.InferenceSession(content.getvalue())
    (found,) = file.run(None, {"x": other.numpy()})
    trace = torch.jit.trace(model, traced, check_trace=False)
    return tuple(model(other).shape), tuple(trace(other).shape), found.shape


print(f"torch {torch.__version__}, onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__}")
print("traced with (1, 3, 4, 5), run with (1, 3, 5, 4)")
found = {name: shapes(name == "view") for name in ("view", "unflatten")}
for name, (eager, trace, exported) in found.items():
    print(f"{name}: eager {eager}, traced {trace}, ONNX file {exported}")
right, wrong = (1, 3, 4, 5), (1, 3, 5, 4)
sys.exit(found != {"view": (right, right, right), "unflatten": (right, right, wrong)})
PYTHON

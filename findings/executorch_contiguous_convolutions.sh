#!/usr/bin/env bash
# The weights of a 1 x 1 convolution are contiguous by any order of their strides, so that `contiguous()` keeps those of
# a model in channels-last. ExecuTorch reads the strides: the convolution's output is then channels-last, and an argmax
# after it fails, with a number for a reason. Export and lowering say nothing. A clone in torch.contiguous_format runs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check executorch==1.5.1 torch==2.13.0 || exit 2
venv/bin/python - 2> log <<'PYTHON' || { status=$?; tail -n 3 log >&2; exit $status; }
import sys
from importlib.metadata import version

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn


class Labels(nn.Module):
    def __init__(self):
        super().__init__()
        self.predictor = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.predictor(x).argmax(dim=1)


def run(model, x):
    """Return the labels that ExecuTorch gives, or its error."""
    exported = torch.export.export(model, (x,))
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    with open("labels.pte", "wb") as file:
        file.write(program.buffer)
    try:
        return Runtime.get().load_program("labels.pte").load_method("forward").execute([x])[0].clone()
    except RuntimeError as error:
        return str(error)


print(f"executorch {version('executorch')}, torch {version('torch')}")
torch.manual_seed(0)
x = torch.randn(1, 8, 4, 6)
outcomes = []
for what in ("contiguous()", "clone(memory_format=torch.contiguous_format)"):
    torch.manual_seed(1)
    model = Labels().eval().to(memory_format=torch.channels_last)
    weight = model.predictor.weight
    own = weight.data.contiguous() if what == "contiguous()" else weight.data.clone(memory_format=torch.contiguous_format)
    weight.data = own
    assert weight.is_contiguous()
    right, given = model(x), run(model, x)
    outcomes.append(isinstance(given, torch.Tensor) and torch.equal(given, right))
    shown = "the same labels as torch" if outcomes[-1] else given
    print(f"weights {tuple(weight.shape)} after {what}: strides {weight.stride()}; ExecuTorch: {shown}")
sys.exit(outcomes != [False, True])
PYTHON

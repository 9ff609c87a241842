#!/usr/bin/env bash
# Heads of detectors share a convolution over the levels of a pyramid, and may have a batch norm for each level. When
# ExecuTorch lowers such a model to XNNPACK, it folds a norm into the convolution's weights, which it keeps once for all
# levels. The second level then has the numbers of the wrong norm. Lowering and running say nothing.
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


class Head(nn.Module):
    """A convolution for two levels, which have a batch norm each, and a convolution each or one for both."""

    def __init__(self, shared):
        super().__init__()
        conv = nn.Conv2d(4, 4, 3, padding=1)
        self.convs = nn.ModuleList([conv, conv if shared else nn.Conv2d(4, 4, 3, padding=1)])
        self.convs[1].load_state_dict(conv.state_dict())
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        nn.init.constant_(self.norms[1].weight, 2)

    def forward(self, *levels):
        return [norm(conv(x)) for norm, conv, x in zip(self.norms, self.convs, levels)]


print(f"executorch {version('executorch')}, torch {version('torch')}")
levels = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 4, 4)
errors = {}
for shared in (False, True):
    torch.manual_seed(0)
    head = Head(shared).eval()
    exported = torch.export.export(head, levels)
    right = exported.module()(*levels)
    assert all(torch.equal(a, b) for a, b in zip(right, head(*levels)))
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    with open("head.pte", "wb") as file:
        file.write(program.buffer)
    given = Runtime.get().load_program("head.pte").load_method("forward").execute([*levels])
    errors[shared] = [float((a - b).abs().max()) for a, b in zip(given, right)]
    which = "one convolution for both levels" if shared else "the same weights in a convolution for each level"
    print(f"{which}: greatest errors of the levels {', '.join(f'{error:.1e}' for error in errors[shared])}")
sys.exit(not (max(*errors[False], errors[True][0]) < 1e-5 and errors[True][1] > 0.1))
PYTHON

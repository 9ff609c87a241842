#!/usr/bin/env bash
# The first step of a bitsandbytes optimizer replaces the memory of channels-last weights by contiguous memory. A model
# in channels_last, which PyTorch recommends for convolutions, computes in the other layout from then on, without a
# warning: every convolution converts its input, and a run that is resumed with the layout of the start has other
# rounding. PyTorch's own AdamW keeps the layout.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check bitsandbytes==0.50.2 torch==2.14.1 numpy==2.4.6 || exit 2
OMP_NUM_THREADS=1 venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import bitsandbytes
import torch


def layouts(optimizer_class):
    """Return the strides of a weight in channels_last before and after one step."""
    torch.manual_seed(0)
    model = torch.nn.Conv2d(64, 128, 3).to(memory_format=torch.channels_last)
    optimizer = optimizer_class(model.parameters(), lr=1e-3)
    before = model.weight.stride()
    model(torch.randn(1, 64, 8, 8).to(memory_format=torch.channels_last)).sum().backward()
    optimizer.step()
    return before, model.weight.stride()


print(f"bitsandbytes {version('bitsandbytes')}, torch {torch.__version__}; the weight of a convolution, 128 x 64 x 3 x 3")
optim = bitsandbytes.optim
found = {x: layouts(x) for x in (torch.optim.AdamW, optim.AdamW8bit, optim.AdamW32bit, optim.Lion8bit)}
channels_last, contiguous = (576, 1, 192, 64), (576, 9, 3, 1)
for optimizer_class, (before, after) in found.items():
    print(f"{optimizer_class.__module__}.{optimizer_class.__name__}: strides {before}, after a step {after}")
kept, *lost = found.values()
sys.exit(kept != (channels_last, channels_last) or any(x != (channels_last, contiguous) for x in lost))
PYTHON

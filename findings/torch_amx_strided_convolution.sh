#!/usr/bin/env bash
# PyTorch on a processor with AMX: in bfloat16, a convolution with a stride of 2 and a kernel of 3 whose output has one
# column and several rows (a batch of at least 2, 128 channels or more) has wrong numbers in some rows, at times NaN, and
# others in every run. No error is raised. Two columns are right, and so are float32 and bfloat16 without AMX
# (ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16). PyTorch's issue 169688 has the same for convolutions of volumes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.14.1 numpy==2.4.6 || exit 2
if ! grep -q amx_bf16 /proc/cpuinfo; then
  echo "This processor has no AMX, so that nothing can be shown."
  exit 0
fi
cat > strided.py <<'PYTHON'
import sys

import torch
from torch import nn

torch.manual_seed(0)
conv = nn.Conv2d(256, 256, 3, stride=2, padding=1)


def off_by(width, precision):
    """Return by how much outputs (4, 256, 5, width / 2) differ from those of float32 at most, in five tries."""
    x = torch.randn(4, 256, 9, width)
    right = conv(x)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        return max((conv(x).float() - right).abs().nan_to_num(torch.inf).max().item() for _ in range(5))


print(f"torch {torch.__version__}")
wrong = set()
with torch.no_grad():
    for width in (1, 2, 3, 4):
        for precision in ("float32", "bfloat16"):
            most = off_by(width, precision)
            print(f"width {width}, {precision}: off by {most:.2g}")
            wrong |= {(width, precision)} if most > 0.1 else set()
sys.exit(wrong != ({(1, "bfloat16"), (2, "bfloat16")} if sys.argv[1] == "amx" else set()))
PYTHON
echo "With AMX:"
venv/bin/python strided.py amx
echo "Without:"
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 venv/bin/python strided.py none

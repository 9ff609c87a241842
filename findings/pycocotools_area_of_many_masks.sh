#!/usr/bin/env bash
# pycocotools' mask.area takes a list of masks. Under numpy 2 a list of more than 255 ends in an OverflowError about
# uint8 and a number that is in none of the masks: how many there are. toBbox takes as many as it is given.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6 || exit 2
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from pycocotools import mask as mask_util

encoded = mask_util.encode(np.ones((4, 5), np.uint8, order="F"))
print("pycocotools", version("pycocotools"), "numpy", version("numpy"))
few = mask_util.area([encoded] * 255)
print("areas of 255 masks of 20 pixels:", set(few.tolist()))
print("boxes of 256 masks:", mask_util.toBbox([encoded] * 256).shape)
try:
    many = mask_util.area([encoded] * 256)
except OverflowError as error:
    many = error
print("areas of 256 masks:", repr(many))
as_stated = set(few.tolist()) == {20} and isinstance(many, OverflowError)
print("as stated: the areas of more than 255 masks cannot be had at once" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

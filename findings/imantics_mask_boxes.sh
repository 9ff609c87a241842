#!/usr/bin/env bash
# imantics makes the box of a mask a pixel too narrow and too low, so that the area is larger than the box, and
# writes a hole as one more polygon, which COCO reads as filled.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check imantics==0.1.12 pycocotools==2.0.11 || exit 2
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from imantics import Annotation, Category, Image, Mask
from pycocotools import mask as mask_util

pixels = np.zeros((48, 64), bool)
pixels[6:38, 8:40] = True
full = Annotation(Image(np.zeros((48, 64, 3), np.uint8)), Category("cat"), mask=Mask(pixels.copy())).coco(include=False)
pixels[16:28, 18:30] = False
ring = Annotation(Image(np.zeros((48, 64, 3), np.uint8)), Category("cat"), mask=Mask(pixels)).coco(include=False)
read = mask_util.merge(mask_util.frPyObjects(ring["segmentation"], 48, 64))
print("imantics", version("imantics"))
print("given:   a mask of 32 x 32 pixels; written:", {key: full[key] for key in ("bbox", "area")})
print("given:   the same with a hole of 12 x 12; written:", {key: ring[key] for key in ("area", "segmentation")})
print("read by pycocotools:", int(mask_util.area(read)), "pixels")
as_stated = list(full["bbox"]) == [8, 6, 31, 31] and full["area"] == 1024
as_stated &= ring["area"] == 880 and mask_util.area(read) == 961
print("as stated: boxes are a pixel short, holes are filled" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

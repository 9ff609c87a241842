#!/usr/bin/env bash
# supervision writes an object whose mask has two parts as two objects, in YOLO's and in Pascal VOC's format, and
# reads two back. In COCO's format the object stays one, as a crowd.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check supervision==0.31.2 numpy==2.2.6 || exit 2
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import supervision as sv
from PIL import Image

Image.new("RGB", (64, 48)).save("a.png")
mask = np.zeros((1, 48, 64), bool)
mask[0, 4:20, 44:60] = mask[0, 28:44, 44:60] = True
cat = sv.Detections(xyxy=np.array([[44.0, 4, 60, 44]]), mask=mask, class_id=np.array([0]))
data = sv.DetectionDataset(["cat"], ["a.png"], {"a.png": cat})
data.as_yolo("yolo/images", "yolo/labels", "yolo/data.yaml")
data.as_pascal_voc("voc/images", "voc/labels")
yolo = sv.DetectionDataset.from_yolo("yolo/images", "yolo/labels", "yolo/data.yaml")
voc = sv.DetectionDataset.from_pascal_voc("voc/images", "voc/labels")
print("supervision", version("supervision"))
print("given:", cat.xyxy.tolist())
read = {name: next(iter(kind.annotations.values())).xyxy for name, kind in (("YOLO", yolo), ("VOC", voc))}
for name, boxes in read.items():
    print(f"{name}, read back:", boxes.tolist())
as_stated = all(len(boxes) == 2 for boxes in read.values())
print("as stated: each part is an object" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

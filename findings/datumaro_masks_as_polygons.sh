#!/usr/bin/env bash
# Datumaro writes a mask with is_crowd=False into COCO's format as polygons: the hole is filled, and the outline
# runs through the centers of pixels. pycocotools reads 961 pixels of 880. The box stays that of the mask. Without
# the attribute, the mask is exact, but a crowd.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check datumaro==1.13.12 pycocotools==2.0.11 || exit 2
venv/bin/python - <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datumaro.components.annotation import Mask
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image
from pycocotools import mask as mask_util

pixels = np.zeros((48, 64), bool)
pixels[6:38, 8:40] = True
pixels[16:28, 18:30] = False
media = Image.from_numpy(np.zeros((48, 64, 3), np.uint8))
masks = [Mask(pixels, label=0, attributes={"is_crowd": False}), Mask(pixels, label=0)]
items = [DatasetItem(id=str(i), subset="train", media=media, annotations=[mask]) for i, mask in enumerate(masks)]
Dataset.from_iterable(items, categories=["cat"]).export("coco", "coco_instances")
written = json.loads(Path("coco/annotations/instances_train.json").read_text())["annotations"]
polygons, run_lengths = (a["segmentation"] for a in written)
read = mask_util.merge(mask_util.frPyObjects(polygons, 48, 64))
print("datumaro", version("datumaro"))
print("given:   a mask of 880 pixels with a hole")
print("is_crowd=False:", {key: written[0][key] for key in ("segmentation", "bbox", "area", "iscrowd")})
print("no attribute: RLE,", {key: written[1][key] for key in ("bbox", "area", "iscrowd")})
as_stated = mask_util.area(read) == 961 and written[0]["bbox"] == [8, 6, 32, 32] and written[0]["iscrowd"] == 0
as_stated &= written[1]["area"] == 880 and written[1]["iscrowd"] == 1
print("as stated: the hole is filled, the outline a pixel short" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

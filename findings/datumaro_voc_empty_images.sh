#!/usr/bin/env bash
# Datumaro writes no XML file for an image without objects into a Pascal VOC dataset, though the list of the set names
# the image. In VOC, each listed image has an XML file; readers that open it, such as torchvision's, fail.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check datumaro==1.13.12 || exit 2
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datumaro.components.annotation import Bbox
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image

media = Image.from_numpy(np.zeros((80, 100, 3), np.uint8))
items = [
    DatasetItem(id="cat", subset="train", media=media, annotations=[Bbox(4, 4, 20, 20, label=0)]),
    DatasetItem(id="empty", subset="train", media=media),
]
Dataset.from_iterable(items, categories=["cat"]).export("voc", "voc_detection", save_media=True)
listed = Path("voc/ImageSets/Main/train.txt").read_text().split()
files = {name: sorted(p.name for p in Path("voc", name).iterdir()) for name in ("JPEGImages", "Annotations")}
print("datumaro", version("datumaro"))
print("listed:", listed)
print("files: ", files)
as_stated = sorted(listed) == ["cat", "empty"] and files["Annotations"] == ["cat.xml"]
print("as stated: the listed image has no XML file" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

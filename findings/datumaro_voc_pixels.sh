#!/usr/bin/env bash
# Datumaro counts the pixels of Pascal VOC from 0. The format counts from 1 and includes the last one. Datumaro reads a
# box of a whole image, 1..100 and 1..80, without its first column and row. What Datumaro writes is a pixel off for
# readers that follow the format.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check datumaro==1.13.12 || exit 2
venv/bin/python - <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datumaro.components.annotation import Bbox
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image

media = Image.from_numpy(np.zeros((80, 100, 3), np.uint8))
item = DatasetItem(id="whole", subset="train", media=media, annotations=[Bbox(0, 0, 100, 80, label=0)])
Dataset.from_iterable([item], categories=["cat"]).export("written", "voc_detection", save_media=True)
xml = Path("written/Annotations/whole.xml").read_text()
corners = [float(xml.split(f"<{key}>")[1].split("<")[0]) for key in ("xmin", "ymin", "xmax", "ymax")]

for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
    Path("voc", folder).mkdir(parents=True)
Path("voc/ImageSets/Main/train.txt").write_text("whole")
Path("voc/labelmap.txt").write_text("cat:::")
Path("voc/JPEGImages/whole.jpg").write_bytes(Path("written/JPEGImages/whole.jpg").read_bytes())
box = "<xmin>1</xmin><ymin>1</ymin><xmax>100</xmax><ymax>80</ymax>"
size = "<size><width>100</width><height>80</height><depth>3</depth></size>"
cat = f"<object><name>cat</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
Path("voc/Annotations/whole.xml").write_text(f"<annotation><filename>whole.jpg</filename>{size}{cat}</annotation>")
Dataset.import_from("voc", "voc_detection").export("coco", "coco_instances")
read = json.loads(Path("coco/annotations/instances_train.json").read_text())["annotations"][0]["bbox"]
print("datumaro", version("datumaro"))
print("a box of the whole image, 100 x 80, written as VOC:", corners)
print("the same in VOC's own way,", box, "read as:", read)
as_stated = corners == [0, 0, 100, 80] and read == [1, 1, 99, 79]
print("as stated: VOC's pixels are counted from 0" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

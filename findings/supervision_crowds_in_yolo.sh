#!/usr/bin/env bash
# supervision writes the crowds of a COCO file as ordinary objects into YOLO's and Pascal VOC's format, which have no
# flag for them: a detector then learns each crowd as one object. Datumaro and Ultralytics' converter leave crowds out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check supervision==0.31.2 numpy==2.2.6 || exit 2
venv/bin/python - <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

import supervision as sv
from PIL import Image

Image.new("RGB", (100, 100)).save("a.png")
run_lengths = {"counts": [100 * 50 + 50, *[40, 60] * 39, 40, 1010], "size": [100, 100]}
crowd = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [50, 50, 40, 40], "area": 1600, "iscrowd": 1}
content = {
    "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
    "categories": [{"id": 1, "name": "sheep"}],
    "annotations": [{**crowd, "segmentation": run_lengths}],
}
Path("given.json").write_text(json.dumps(content))
data = sv.DetectionDataset.from_coco(".", "given.json")
data.as_yolo("yolo/images", "yolo/labels", "yolo/data.yaml")
data.as_pascal_voc("voc/images", "voc/labels")
yolo = Path("yolo/labels/a.txt").read_text().splitlines()
voc = Path("voc/labels/a.xml").read_text()
print("supervision", version("supervision"))
print("given: one crowd,", crowd["bbox"])
print("YOLO:", yolo)
print("VOC: ", " ".join(voc[voc.find("<object>") : voc.find("</bndbox>")].split()))
as_stated = len(yolo) == 1 and voc.count("<object>") == 1
print("as stated: the crowd is an ordinary object" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

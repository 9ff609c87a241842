#!/usr/bin/env bash
# Where two people have labeled an image in Label Studio, the COCO export has the image twice, under two ids and
# one file name, each with the objects of one of them; the YOLO export has those of the earlier one alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check label-studio-sdk==2.1.2 || exit 2
venv/bin/python - <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

from label_studio_sdk.converter import Converter
from PIL import Image


def annotation(number, x):
    value = {"x": x, "y": 10, "width": 20, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]}
    region = {"id": f"r{number}", "type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value}
    region |= {"original_width": 100, "original_height": 50, "image_rotation": 0}
    return {"id": number, "completed_by": number, "created_at": f"2026-01-0{number}T00:00:00Z", "result": [region]}


Path("upload/1").mkdir(parents=True)
Image.new("RGB", (100, 50)).save("upload/1/a.png")
task = {"id": 7, "data": {"image": "/data/upload/1/a.png"}, "annotations": [annotation(1, 10), annotation(2, 60)]}
Path("tasks.json").write_text(json.dumps([task]))
labels = '<RectangleLabels name="label" toName="image"><Label value="cat"/></RectangleLabels>'
converter = Converter(f'<View><Image name="image" value="$image"/>{labels}</View>', project_dir=".", upload_dir="upload")
converter.convert("tasks.json", "coco", "COCO", is_dir=False)
converter.convert("tasks.json", "yolo", "YOLO", is_dir=False)
coco = json.loads(Path("coco/result.json").read_text())
yolo = Path("yolo/labels/a.txt").read_text().split()
print("label-studio-sdk", version("label-studio-sdk"))
print("given:   one image; 1 January: a box from x 10 to 30; 2 January: a box from x 60 to 80")
print("COCO:   ", [(i["id"], i["file_name"]) for i in coco["images"]], [(a["image_id"], a["bbox"]) for a in coco["annotations"]])
print("YOLO:   ", yolo)
as_stated = len({i["file_name"] for i in coco["images"]}) == 1 and len({i["id"] for i in coco["images"]}) == 2
as_stated &= len(yolo) == 5 and round(float(yolo[1]), 4) == 0.2
print("as stated: COCO has the image twice, YOLO the earlier labels alone" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

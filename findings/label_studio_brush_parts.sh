#!/usr/bin/env bash
# Label Studio's export "Brush labels to COCO" makes one object of each part of a brush region, fills holes, and
# draws outlines through the centers of pixels: the area is that of a mask a pixel narrower and lower. Images
# without objects are left out.
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

import numpy as np
from label_studio_sdk.converter import Converter
from label_studio_sdk.converter.brush import mask2rle


def task(number, pixels):
    value = {"format": "rle", "rle": mask2rle(pixels.astype(np.uint8) * 255), "brushlabels": ["cat"]}
    region = {"id": "r", "type": "brushlabels", "from_name": "label", "to_name": "image", "value": value}
    region |= {"original_width": 64, "original_height": 48, "image_rotation": 0}
    result = [region] if pixels.any() else []
    return {"id": number, "data": {"image": f"/data/upload/1/{number}.png"}, "annotations": [{"id": number, "result": result}]}


parts, ring, empty = (np.zeros((48, 64), bool) for _ in range(3))
parts[4:20, 44:60] = parts[28:44, 44:60] = True
ring[6:38, 8:40] = True
ring[16:28, 18:30] = False
Path("tasks.json").write_text(json.dumps([task(1, parts), task(2, ring), task(3, empty)]))
labels = '<BrushLabels name="label" toName="image"><Label value="cat"/></BrushLabels>'
converter = Converter(f'<View><Image name="image" value="$image"/>{labels}</View>', project_dir=".", upload_dir=".")
converter.convert("tasks.json", "coco", "BRUSH_TO_COCO", is_dir=False)
written = json.loads(Path("coco/result_coco.json").read_text())
print("label-studio-sdk", version("label-studio-sdk"))
print("given:   image 1: one region of two squares, 512 pixels; image 2: one with a hole, 880 pixels; image 3: none")
print("images: ", [i["file_name"] for i in written["images"]])
print("objects:", [(a["image_id"], a["bbox"], a["area"], a["segmentation"]) for a in written["annotations"]])
as_stated = [(a["image_id"], a["area"]) for a in written["annotations"]] == [(0, 225), (0, 225), (1, 961)]
as_stated &= len(written["images"]) == 2
print("as stated: a part is an object, holes are filled, areas are a pixel short" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

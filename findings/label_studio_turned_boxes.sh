#!/usr/bin/env bash
# Label Studio's export "Brush labels to COCO" takes no notice of a box's rotation, which is about the upper left corner:
# a box that was turned by 90 degrees is written where nothing is. The export "COCO" of the same project is right.
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

Path("upload/1").mkdir(parents=True)
Image.new("RGB", (100, 100)).save("upload/1/a.png")
value = {"x": 60, "y": 20, "width": 30, "height": 10, "rotation": 90, "rectanglelabels": ["cat"]}
region = {"id": "r", "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value}
region |= {"original_width": 100, "original_height": 100, "image_rotation": 0}
task = {"id": 1, "data": {"image": "/data/upload/1/a.png"}, "annotations": [{"id": 1, "result": [region]}]}
Path("tasks.json").write_text(json.dumps([task]))
tags = [
    f'<{kind}Labels name="{name}" toName="image"><Label value="cat"/></{kind}Labels>'
    for kind, name in (("Rectangle", "box"), ("Brush", "brush"))
]
config = f'<View><Image name="image" value="$image"/>{"".join(tags)}</View>'
converter = Converter(config, project_dir=".", upload_dir="upload")
boxes = {}
for export, file in (("COCO", "result.json"), ("BRUSH_TO_COCO", "result_coco.json")):
    converter.convert("tasks.json", "coco", export, is_dir=False)
    (annotation,) = json.loads(Path("coco", file).read_text())["annotations"]
    boxes[export] = [round(x, 6) for x in annotation["bbox"]]
print("label-studio-sdk", version("label-studio-sdk"))
print("given:  ", {key: value[key] for key in ("x", "y", "width", "height", "rotation")})
print("written:", boxes)
as_stated = boxes == {"COCO": [50, 20, 10, 30], "BRUSH_TO_COCO": [60, 20, 30, 10]}
print("as stated: the rotation is lost in one of the exports" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

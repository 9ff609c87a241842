#!/usr/bin/env bash
# labelme2coco takes no notice of labelme's group_id: an object that was drawn as two shapes of one group, since
# something stands before it, becomes two objects.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check labelme2coco==0.2.6 numpy==2.2.6 || exit 2
venv/bin/python - <<'PYTHON'
import json
import sys
from importlib.metadata import version
from pathlib import Path

from labelme2coco import convert


def shape(x):
    points = [[x, 10], [x + 10, 10], [x + 10, 30], [x, 30]]
    kind = {"group_id": 1, "description": "", "shape_type": "polygon", "flags": {}, "mask": None}
    return {"label": "cat", "points": points, **kind}


Path("images").mkdir()
content = {"version": "5.8.1", "flags": {}, "shapes": [shape(5), shape(40)], "imagePath": "a.png", "imageData": None}
Path("images/a.json").write_text(json.dumps({**content, "imageHeight": 48, "imageWidth": 64}))
convert("images", "coco")
written = json.loads(Path("coco/dataset.json").read_text())["annotations"]
print("labelme2coco", version("labelme2coco"))
print("given:   one object of two parts, by group_id 1")
print("written:", [(a["id"], a["bbox"]) for a in written])
as_stated = len(written) == 2
print("as stated: each part is an object" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

#!/usr/bin/env bash
# pylabel writes the last object of the image before once more for each image without objects.
# The two annotations have one id. If the first image has no objects, the export ends in an UnboundLocalError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check pylabel==0.1.55 pandas==2.3.3 || exit 2
venv/bin/python - <<'PYTHON'
import json
import sys
from importlib.metadata import version

from pylabel import importer

given = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (1, 2, 3)],
    "categories": [{"id": 1, "name": "cat", "supercategory": ""}],
    "annotations": [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [8 * i, 4, 16, 20], "area": 320, "iscrowd": 0, "segmentation": []}
        for i in (1, 3)
    ],
}
with open("given.json", "w") as file:
    json.dump(given, file)
importer.ImportCoco("given.json").export.ExportToCoco("written.json")
with open("written.json") as file:
    written = json.load(file)["annotations"]
print("pylabel", version("pylabel"))
print("given:  ", [(a["id"], a["image_id"], a["bbox"]) for a in given["annotations"]], "and image 2 without objects")
print("written:", [(a["id"], a["image_id"], a["bbox"]) for a in written])
as_stated = [a["image_id"] for a in written] == [1, 1, 3] and written[0] == written[1]
print("as stated: an image without objects repeats the object before it" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

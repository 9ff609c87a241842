#!/usr/bin/env bash
# sahi writes every crowd as an ordinary object: of an annotation made with iscrowd=1, and of a crowd in a COCO
# file that it reads, cuts into slices, splits or merges. Of a crowd's run lengths only the box is left.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check sahi==0.12.8 numpy==2.2.6 || exit 2
venv/bin/python - <<'PYTHON'
import json
import sys
from importlib.metadata import version

from PIL import Image
from sahi.slicing import slice_coco
from sahi.utils.coco import Coco, CocoAnnotation, CocoCategory, CocoImage

square = [[10, 10, 30, 10, 30, 30, 10, 30]]
made = Coco()
made.add_category(CocoCategory(id=1, name="cat"))
image = CocoImage("a.png", height=48, width=64)
image.add_annotation(CocoAnnotation(category_id=1, category_name="cat", segmentation=square, iscrowd=1))
made.add_image(image)

Image.new("RGB", (64, 48)).save("a.png")
counts = [48 * 20 + 8, *[20, 28] * 19, 20]
counts.append(48 * 64 - sum(counts))
crowd = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 8, 20, 20], "area": 400, "iscrowd": 1}
crowd["segmentation"] = {"counts": counts, "size": [48, 64]}
with open("given.json", "w") as file:
    json.dump({
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
        "categories": [{"id": 1, "name": "cat"}], "annotations": [crowd],
    }, file)
read = Coco.from_coco_dict_or_path("given.json").json
sliced, _ = slice_coco("given.json", ".", "sliced", output_dir="sliced", slice_height=48, slice_width=64)

print("sahi", version("sahi"))
written = {"made with iscrowd=1": made.json, "read from a file": read, "cut into slices": sliced}
for how, content in written.items():
    print(f"{how}:", [(a["iscrowd"], a["bbox"], a["segmentation"]) for a in content["annotations"]])
as_stated = all([a["iscrowd"] for a in content["annotations"]] == [0] for content in written.values())
print("as stated: each crowd is written with iscrowd 0" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

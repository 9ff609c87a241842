#!/usr/bin/env bash
# globox's COCO evaluation counts a crowd as an object and each detection within it as false. On this image, where
# pycocotools gives 1.0, it gives 0.17. Its reader drops the flag.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check globox==2.9.0 pycocotools==2.0.11 || exit 2
venv/bin/python - <<'PYTHON'
import contextlib
import io
import json
import sys
from importlib.metadata import version

from globox import AnnotationSet, COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

crowd = {"counts": [100 * 50 + 50, *[40, 60] * 39, 40, 1010], "size": [100, 100]}
truth = {
    "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0, "segmentation": []},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 50, 40, 40], "area": 1600, "iscrowd": 1, "segmentation": crowd},
    ],
}
boxes = [([52, 52, 10, 10], 0.9), ([70, 70, 10, 10], 0.8), ([10, 10, 20, 20], 0.7)]
found = [{"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in boxes]
for name, content in (("truth.json", truth), ("found.json", found)):
    with open(name, "w") as file:
        json.dump(content, file)
with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO("truth.json")
    evaluation = COCOeval(coco, coco.loadRes("found.json"), "bbox")
    evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
ground_truths = AnnotationSet.from_coco("truth.json")
predictions = ground_truths.from_results("found.json")
ap = COCOEvaluator(ground_truths=ground_truths, predictions=predictions).ap()
print("globox", version("globox"), "pycocotools", version("pycocotools"))
print("given:  an object, found; a crowd, two detections in it")
print(f"AP of pycocotools: {evaluation.stats[0]:.3f}; of globox: {ap:.3f}")
as_stated = evaluation.stats[0] > 0.999 and ap < 0.2
print("as stated: crowds count as objects" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

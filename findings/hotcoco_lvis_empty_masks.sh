#!/usr/bin/env bash
# LVIS's own evaluation leaves out detections without area, such as empty masks, before it counts false ones. hotcoco's
# LVIS mode, which otherwise gives the figures of the package lvis to the last bit, counts them: an empty mask with a
# high score halves the AP of a perfect detection. Detectors write empty masks wherever no pixel passes the threshold.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check hotcoco==1.3.0 lvis==0.5.3 pycocotools==2.0.11 numpy==2.4.6 || exit 2
venv/bin/python - <<'PYTHON'
import json
import logging
import sys
from contextlib import redirect_stdout
from importlib.metadata import version

import hotcoco
import lvis
import numpy as np
from pycocotools import mask as mask_util

logging.disable()
np.float = float  # lvis 0.5.3 reads this name, which numpy 1.24 took away


def mask(width):
    pixels = np.zeros((48, 64), np.uint8, order="F")
    pixels[8:40, 8 : 8 + width] = 1
    encoded = mask_util.encode(pixels)
    return {**encoded, "counts": encoded["counts"].decode()}


with open("truth.json", "w") as file:
    json.dump({
        "images": [{"id": 1, "width": 64, "height": 48, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "categories": [{"id": 1, "name": "cat", "frequency": "f"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 32, 32], "area": 1024, "segmentation": mask(32)}
        ],
    }, file)


def detections(*widths_and_scores):
    return [
        {"image_id": 1, "category_id": 1, "segmentation": mask(width), "score": score}
        for width, score in widths_and_scores
    ]


def average_precision(package, found):
    truth = package.LVIS("truth.json")
    evaluation = package.LVISEval(truth, package.LVISResults(truth, found), "segm")
    with redirect_stdout(None):
        evaluation.run()
    return round(float(evaluation.get_results()["AP"]), 3)


print("hotcoco", version("hotcoco"), "lvis", version("lvis"))
perfect, with_empty = [(32, 0.8)], [(0, 0.9), (32, 0.8)]
aps = [[average_precision(package, detections(*found)) for found in (perfect, with_empty)] for package in (hotcoco, lvis)]
print("a perfect mask, and the same below an empty mask: AP by hotcoco", *aps[0], "by lvis", *aps[1])
as_stated = aps == [[1.0, 0.5], [1.0, 1.0]]
print("as stated: hotcoco counts the empty mask as a false detection" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

#!/usr/bin/env bash
# Datumaro writes YOLO's files without the objects that are polygons or masks. It logs nothing and ends with status 0;
# their images become images without objects. The transform "shapes_to_boxes" before the export keeps them as boxes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check datumaro==1.13.12 || exit 2
venv/bin/python - <<'PYTHON'
import logging
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datumaro.components.annotation import Bbox, Mask, Polygon
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image

logged = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: logged.append(record.getMessage())
logging.getLogger().addHandler(handler)

pixels = np.zeros((80, 100), bool)
pixels[10:50, 20:60] = True
shapes = {"box": Bbox(20, 10, 40, 40, label=0), "mask": Mask(pixels, label=0)}
shapes["polygon"] = Polygon([20, 10, 60, 10, 60, 50, 20, 50], label=0)
media = Image.from_numpy(np.zeros((80, 100, 3), np.uint8))
items = [
    DatasetItem(id=name, subset=subset, media=media, annotations=[shape])
    for subset in ("train", "val")
    for name, shape in shapes.items()
]
data = Dataset.from_iterable(items, categories=["cat"])
data.export("written", "yolo_ultralytics", save_media=True)
written = {name: Path(f"written/labels/train/{name}.txt").read_text().strip() for name in shapes}
data.transform("shapes_to_boxes")
data.export("boxes", "yolo_ultralytics", save_media=True)
as_boxes = {name: Path(f"boxes/labels/train/{name}.txt").read_text().strip() for name in shapes}
print("datumaro", version("datumaro"))
print("given:   one object an image, of the same extent")
print("written:", written, "warnings:", logged)
print("after shapes_to_boxes:", as_boxes)
as_stated = bool(written["box"]) and not written["mask"] and not written["polygon"] and not logged
as_stated &= all(as_boxes.values())
print("as stated: polygons and masks are left out without a word" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

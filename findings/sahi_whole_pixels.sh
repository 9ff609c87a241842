#!/usr/bin/env bash
# sahi cuts the fractions off the coordinates of polygons, and off the area, but keeps those of the box. A polygon
# is so moved by up to a pixel towards the upper left, and its box is no longer the annotation's. labelme2coco
# writes by sahi; labelme's points have fractions.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check sahi==0.12.8 numpy==2.2.6 || exit 2
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

from sahi.utils.coco import CocoAnnotation

polygon = [10.9, 8.9, 20.9, 8.9, 20.9, 18.9, 10.9, 18.9]
written = CocoAnnotation(category_id=1, category_name="cat", segmentation=[polygon]).json
print("sahi", version("sahi"))
print("given:  ", polygon)
print("written:", {key: written[key] for key in ("segmentation", "bbox", "area")})
as_stated = sorted(written["segmentation"][0]) == [8, 8, 10, 10, 18, 18, 20, 20]
as_stated &= [round(x, 6) for x in written["bbox"]] == [10.9, 8.9, 10, 10]
print("as stated: the polygon is in whole pixels, cut and not rounded; the box is not" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

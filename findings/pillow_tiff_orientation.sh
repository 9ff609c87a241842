#!/usr/bin/env bash
# Pillow turns a TIFF upright when it loads the pixels, JPEG and PNG never. Before that, a TIFF's size is the
# upright one, and its EXIF still states the orientation. Code that reads the orientation of an image it has just
# opened, and turns the image by it, turns a TIFF twice; Detectron2's read_image (0.6) does that. Code that swaps
# width and height of a header by the orientation is wrong for TIFFs as well.
# Exit status 0: Pillow still does so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import PIL
from PIL import Image

print("Pillow", PIL.__version__)
exif = Image.Exif()
exif[274] = 6  # a quarter turn
stored = Image.new("RGB", (64, 48))
expected = {
    # upright, it is 48x64: size of the header, orientation before and after loading, size once turned by the first
    "png": ((64, 48), 6, 6, (48, 64)),
    "jpg": ((64, 48), 6, 6, (48, 64)),
    "tiff": ((48, 64), 6, None, (64, 48)),
}
seen = {}
for ext in expected:
    stored.save(f"x.{ext}", exif=exif)
    with Image.open(f"x.{ext}") as image:
        header, before = image.size, image.getexif().get(274)
        turned = image.transpose(Image.Transpose.ROTATE_270).size  # loads first
    with Image.open(f"x.{ext}") as image:
        image.load()
        after = image.getexif().get(274)
    seen[ext] = header, before, after, turned
    print(f"{ext}: header {header}, orientation {before} before loading, {after} after, turned by it {turned}")
sys.exit(seen != expected)
PYTHON

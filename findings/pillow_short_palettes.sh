#!/usr/bin/env bash
# Pillow writes a palette image to PNG with as many bits a pixel as the number of its palette's colors needs, and
# cuts each pixel value to these bits. So a label image with a color for each of its 3 classes, and 255 for pixels to
# ignore, comes back with 3 in place of 255, and without an error. The option bits=8 changes nothing, although the
# manual says that it sets the number of bits, and that 8 is the default. A palette of 256 colors keeps the values.
# Exit status 0: Pillow still does so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" || exit 2
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 || exit 2
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import PIL
from PIL import Image

print("Pillow", PIL.__version__)
VALUES = [0, 1, 2, 255]
COLORS = {0: (0, 0, 0), 1: (200, 0, 0), 2: (0, 200, 0)}
seen = {}
for colors, options in ((3, {}), (3, {"bits": 8}), (16, {}), (256, {})):
    labels = Image.new("P", (4, 1))
    labels.putpalette([x for i in range(colors) for x in COLORS.get(i, (i, i, i))])
    labels.putdata(VALUES)
    assert list(labels.tobytes()) == VALUES
    labels.save("labels.png", **options)
    with Image.open("labels.png") as read:
        seen[colors, options.get("bits")] = list(read.tobytes())
    print(f"{colors} colors, {options or 'no options'}: {VALUES} is read as {seen[colors, options.get('bits')]}")
expected = {
    (3, None): [0, 1, 2, 3],
    (3, 8): [0, 1, 2, 3],
    (16, None): [0, 1, 2, 15],
    (256, None): VALUES,
}
sys.exit(seen != expected)
PYTHON

#!/usr/bin/env bash
# Two things that Pillow does to gray TIFFs of 8 bits, and not to deeper ones:
# - PhotometricInterpretation WhiteIsZero, a negative: values are inverted at 8 bits, and given as stored at 16.
# - BitsPerSample 12 is read as mode "I;16", of 0 to 4095. A 12-bit PGM (maxval 4095) is spread over 0 to 65535.
# Whoever takes the upper 8 of 16 bits gets a negative image, and a nearly black one.
# Exit status 0: Pillow still does so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import struct
import sys
from pathlib import Path

import PIL
from PIL import Image

print("Pillow", PIL.__version__)


def tiff(name, content, bits, photometric):
    """A TIFF of one row of two gray pixels."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    ifd = struct.pack("<H", len(tags)) + entries + bytes(4)
    Path(name).write_bytes(b"II*\0" + struct.pack("<I", 8 + len(content)) + content + ifd)


tiff("negative8.tiff", bytes([0, 255]), 8, 0)
tiff("negative16.tiff", struct.pack("<HH", 0, 65535), 16, 0)
tiff("white12.tiff", bytes([0x00, 0x0F, 0xFF]), 12, 1)
Path("white12.pgm").write_bytes(b"P5 2 1 4095\n" + struct.pack(">HH", 0, 4095))
expected = {
    "negative8.tiff": ("L", (0, 255), (255, 0)),
    "negative16.tiff": ("I;16", (0, 65535), (0, 65535)),
    "white12.tiff": ("I;16", (0, 4095), (0, 4095)),
    "white12.pgm": ("I", (0, 4095), (0, 65535)),
}
wrong = False
for name, (mode, stored, given) in expected.items():
    with Image.open(name) as image:
        seen = image.mode, tuple(image.getpixel((x, 0)) for x in (0, 1))
    print(f"{name}: stored {stored}, mode {seen[0]}, values {seen[1]}")
    wrong |= seen != (mode, given)
sys.exit(wrong)
PYTHON

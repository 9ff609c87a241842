"""Have a label tool write the scene: python tests/label_tools/make.py TOOL

Run it by hand; the output is committed. The tool is installed in a temporary environment, which needs pip and
a package index. Its folder beside this file is written anew. "images" draws the images instead.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from scene import HEIGHT, IMAGES, OBJECTS, WIDTH

HERE = Path(__file__).resolve().parent
NUMPY = "numpy==2.2.6"
PACKAGES = {
    "datumaro": ["datumaro==1.13.12"],
    "globox": ["globox==2.9.0", NUMPY],
    "imantics": ["imantics==0.1.12"],
    "kwcoco": ["kwcoco==0.9.1"],
    "label_studio": ["label-studio-sdk==2.1.2"],
    "labelme2coco": ["labelme2coco==0.2.6"],
    "pycocowriter": ["pycocowriter==0.5.6", "jsonschema==4.26.0"],
    "pylabel": ["pylabel==0.1.55", "pandas==2.3.3"],
    "sahi": ["sahi==0.12.8"],
    "supervision": ["supervision==0.31.2"],
}
BACKGROUNDS = ((90, 140, 80), (110, 120, 90), (80, 110, 130), (130, 130, 120))
COLORS = {"wheelbarrow": (200, 60, 40), "garden gnome": (60, 60, 200), "cat": (30, 30, 30)}


def draw_images() -> None:
    """Draw the images of the scene."""
    from PIL import Image, ImageDraw

    (HERE / "images").mkdir(exist_ok=True)
    for name, background in zip(IMAGES, BACKGROUNDS, strict=True):
        image = Image.new("RGB", (WIDTH, HEIGHT), background)
        for each in (each for each in OBJECTS if each.image == name):
            if each.filled:
                color = Image.new("RGB", image.size, COLORS[each.label])
                image.paste(color, mask=Image.fromarray(each.mask()))
            else:
                ImageDraw.Draw(image).polygon(each.points, fill=COLORS[each.label])
        image.save(HERE / "images" / name, optimize=True)


def make(tool: str, python: str | None) -> None:
    """Write the folder of one tool.

    Args:
        tool: one of ``PACKAGES``.
        python: interpreter that has the tool; without, one is made for the time of the run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if python is None:
            venv.create(Path(temporary) / "venv", with_pip=True)
            python = str(Path(temporary) / "venv/bin/python")
            subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[tool]], check=True)
        # A neutral folder, for some tools write paths as they were given or from where they run.
        project = Path(temporary) / "project"
        shutil.copytree(HERE / "images", project / "images")
        subprocess.run([python, str(HERE / "writers.py"), tool], cwd=project, check=True)
        shutil.rmtree(HERE / tool, ignore_errors=True)
        shutil.move(project / tool, HERE / tool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=["images", *PACKAGES])
    parser.add_argument("--python", help="an interpreter that has the tool already")
    args = parser.parse_args()
    if args.tool == "images":
        draw_images()
    else:
        make(args.tool, args.python)


if __name__ == "__main__":
    sys.exit(main())

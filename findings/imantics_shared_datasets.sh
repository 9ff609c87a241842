#!/usr/bin/env bash
# All of imantics' Datasets of one process share their images, categories and annotations: a validation set that is
# made after a training set has the training images as well. Both are written with status 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check imantics==0.1.12 || exit 2
venv/bin/python - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from imantics import Annotation, Category, Dataset, Image


def dataset(name, image_id):
    image = Image(np.zeros((48, 64, 3), np.uint8), id=image_id)
    image.file_name = f"{name}.png"
    image.add(Annotation(image, Category("cat", id=1), bbox=[4, 4, 20, 20]))
    data = Dataset(name)
    data.add(image)
    return data


train, val = dataset("train", 1), dataset("val", 2)
written = {name: [i["file_name"] for i in data.coco()["images"]] for name, data in (("train", train), ("val", val))}
print("imantics", version("imantics"))
print("written:", written)
as_stated = written["train"] == written["val"] == ["train.png", "val.png"]
print("as stated: each set has the images of both" if as_stated else "CHANGED")
sys.exit(not as_stated)
PYTHON

#!/usr/bin/env bash
# Detectron2's SemSegEvaluator reports BoundaryIoU for each class if OpenCV is installed. It erodes the whole label map as
# if it were a gray image, and takes what the erosion subtracts for a label: a pixel of class 5 beside class 3 counts as
# the boundary of class 2, and only beside class 0 the boundary of a class is its own. The values of an unchanged
# prediction change if the classes are numbered in another order.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 fvcore==0.1.5.post20221221 \
  iopath==0.1.10 pycocotools==2.0.11 opencv-python-headless==4.11.0.86 "omegaconf<2.4" "setuptools<82" cloudpickle \
  matplotlib || exit 2
site=$(venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
venv/bin/pip install -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.10 --target "$site" \
  sal-detectron2==0.7.2 || exit 2  # Detectron2's official source of late 2024 as a wheel
venv/bin/python - <<'PYTHON'
import logging
import sys
from importlib.metadata import version

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

logging.disable(logging.CRITICAL)


def evaluate(name, truth, predicted, classes):
    """Return the evaluator's metrics for one image of 40 x 40 pixels."""
    DatasetCatalog.register(name, lambda: [{"file_name": "image", "sem_seg_file_name": "labels"}])
    MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=255)
    evaluator = SemSegEvaluator(name, sem_seg_loading_fn=lambda file, dtype: truth.astype(dtype))
    evaluator.reset()
    logits = torch.nn.functional.one_hot(torch.from_numpy(predicted), len(classes)).permute(2, 0, 1)
    evaluator.process([{"file_name": "image"}], [{"sem_seg": logits}])
    return evaluator.evaluate()["sem_seg"]


print(f"sal-detectron2 {version('sal-detectron2')}, opencv-python-headless {version('opencv-python-headless')}")

halves = np.full((40, 40), 3)
halves[:, 20:] = 5
metrics = evaluate("halves", halves, halves, [f"class {i}" for i in range(6)])
nowhere = metrics["IoU-class 2"], metrics["BoundaryIoU-class 2"]
print(f"class 2, which is in no pixel of image and prediction: IoU {nowhere[0]}, BoundaryIoU {nowhere[1]}")


def numbered(names):
    """The same image and prediction for an order of the classes: a thing, whose prediction is one pixel to the right."""
    thing, around = names.index("thing"), names.index("around")
    truth, predicted = np.full((40, 40), around), np.full((40, 40), around)
    truth[10:30, 10:30] = predicted[10:30, 11:31] = thing
    found = evaluate(" ".join(names), truth, predicted, list(names))
    return found["IoU-thing"], found["BoundaryIoU-thing"]


for names in (("around", "thing", "other"), ("other", "around", "thing")):
    iou, boundary = numbered(names)
    print(f"classes {', '.join(names)}: IoU of thing {iou:.1f}, BoundaryIoU {boundary:.1f}")
as_stated = np.isnan(nowhere[0]) and nowhere[1] == 100 and iou > 90 and np.isnan(boundary)
print("as stated" if as_stated else "not as stated")
sys.exit(not as_stated)
PYTHON

#!/usr/bin/env python
"""Run a model.tflite of tools/export_model.py by LiteRT's interpreter, and print its predictions.

pip install ai-edge-litert numpy pillow
python examples/litert/detect.py model.tflite photo.jpg 0.5

An Android app takes the same steps: resize, normalize, run, decode. The file holds what they need.
"""

import json
import sys
from zipfile import ZipFile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image, ImageOps


def main(file: str, photo: str, threshold: float) -> None:
    with ZipFile(file) as archive:
        about = {name: archive.read(name).decode() for name in archive.namelist()}
    model = Interpreter(file).get_signature_runner()
    inputs = model.get_input_details()
    if len(inputs) > 1:
        sys.exit(f"error: {file} takes text embeddings of names: see docs/export.md#names.")
    ((given, details),) = inputs.items()
    names = json.loads(about["class_names"])

    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    height, width = details["shape"][2:]
    scale = min(height / image.height, width / image.width)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, np.float32)[:, :, :: -1 if about["pixel_format"] == "BGR" else 1]
    mean, std = (np.array(json.loads(about[key]), np.float32) for key in ("pixel_mean", "pixel_std"))
    images = np.zeros((1, 3, height, width), np.float32)  # zeros at the lower and right sides
    images[0, :, : small.height, : small.width] = ((pixels - mean) / std).transpose(2, 0, 1)
    found = model(**{given: images})

    if "labels" in found:
        labels, counts = np.unique(found["labels"][0, : small.height, : small.width], return_counts=True)
        for label, count in zip(labels, counts, strict=True):
            print(f"{names[label] if label < len(names) else label}: {count / counts.sum():.1%}")
    else:
        decoder: dict = {}
        exec(about["decode.py"], decoder)  # the file's own script
        found = decoder["decode"](found, about, (small.height, small.width))
        for box, score, label in zip(found["boxes"], found["scores"], found["classes"], strict=True):
            if score >= threshold:
                print(f"{names[label]} {score:.2f} at {', '.join(f'{x:.1f}' for x in box / scale)}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python detect.py model.tflite photo.jpg threshold")
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))

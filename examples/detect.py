#!/usr/bin/env python
"""Run a file exported by tools/export_model.py without torch, and draw its predictions.

pip install -r examples/requirements.txt
python examples/detect.py model.onnx photo.jpg --threshold 0.5 --output seen.png
python examples/detect.py model.onnx photo.jpg --runtime openvino    # pip install numpy pillow openvino
python examples/detect.py model.onnx photo.jpg --names "garden gnome" "sofa|couch"    # pip install tokenizers
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of a TIFF, and a value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="an exported model.onnx")
    parser.add_argument("image")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score drawn (%(default)s)")
    parser.add_argument(
        "--names", nargs="+", default=[], metavar="NAME",
        help="classes to find, of a model with names.onnx and tokenizer.json beside it; \"a|b\": synonyms",
    )  # fmt: skip
    parser.add_argument("--output", default="seen.png", help="image to write (%(default)s)")
    parser.add_argument(
        "--runtime", choices=list(RUNTIMES), default="onnxruntime", help="runtime of the model (%(default)s)"
    )
    args = parser.parse_args()

    about, run = RUNTIMES[args.runtime](args.model)
    names = args.names or json.loads(about["class_names"])
    inputs = {}
    if "learned_names" in about:  # the model takes any names, and adds its own
        inputs["text_embeddings"] = encode(names, Path(args.model).parent, args.runtime)
        names = names + json.loads(about["learned_names"])
    elif args.names:
        sys.exit(f"error: {args.model} finds the classes it was trained on alone; leave out --names.")
    image = read(args.image)
    pixels = np.asarray(image)
    if about["pixel_format"] == "BGR":
        pixels = pixels[:, :, ::-1]
    outputs = json.loads(about["outputs"])
    inputs["images"] = np.ascontiguousarray(pixels)[None]
    found = dict(zip(outputs, run(outputs, inputs), strict=True))

    drawn = np.array(image)
    if "labels" in found:
        labels = found["labels"][0]
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
            print(f"{names[label] if label < len(names) else label}: {count / labels.size:.1%}")
            paint(drawn, labels == label, COLORS[label % len(COLORS)])
    if "boxes" in found:
        drawn = draw(drawn, found, names, args.threshold)
    Image.fromarray(drawn).save(args.output)
    print(f"Wrote {args.output}")


def read(path: str) -> Image.Image:
    """Read an image as in training: upright, RGB, with 8 bits per channel.

    Images of 16 bits keep the upper 8. The value of white is unknown in floats, signed and 32-bit integers.
    """
    try:
        image = Image.open(path)
        image.load()
    except Exception as error:  # Pillow raises many types for a broken file
        sys.exit(f"error: {path} cannot be read: {error}")
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        sys.exit(f"error: {path} has Pillow's mode {image.mode!r}. Save it with 8 or 16 bits per channel.")
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    with contextlib.suppress(Exception):  # a broken EXIF block does not matter
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = (np.asarray(image) >> (tags.get(BITS_PER_SAMPLE, (16,))[0] - 8)).astype(np.uint8)
        image = Image.fromarray(255 - values if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else values)
    return image.convert("RGB")


def encode(names: list[str], folder: Path, runtime: str) -> np.ndarray:
    """Return the text embeddings of names, (K, C). Synonyms, "sofa|couch", share their mean."""
    from tokenizers import Tokenizer

    about, run = RUNTIMES[runtime](str(folder / "names.onnx"))
    words = [[word.strip() for word in name.split("|")] for name in names]
    if not all(map(all, words)):
        sys.exit("error: a name or a synonym is empty.")
    prompts = [about["prompt"].format(word) for own in words for word in own]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    token_ids = np.array([x.ids for x in tokenizer.encode_batch(prompts)])
    if token_ids.shape[1] > int(about["most_tokens"]):
        sys.exit(f"error: a name has more than {about['most_tokens']} tokens, with its start and end.")
    (text,) = run(["text_embeddings"], {"token_ids": token_ids})
    ends = np.cumsum([len(own) for own in words])
    return np.stack([own.mean(axis=0) for own in np.split(text, ends[:-1])])


Run = Callable[[list[str], dict[str, np.ndarray]], list[np.ndarray]]


def onnxruntime(model: str) -> tuple[dict[str, str], Run]:
    """Return a file's metadata, and the function that computes outputs by name from inputs by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    return about, session.run


def openvino(model: str) -> tuple[dict[str, str], Run]:
    """Return the same by OpenVINO, which computes in bfloat16 if the processor can."""
    import openvino

    read = openvino.Core().read_model(model)
    compiled = openvino.compile_model(read, "CPU")

    def run(names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        given = compiled(inputs)
        return [given[name] for name in names]

    return {key: value.value for key, value in read.get_rt_info()["framework"].items()}, run


RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino}


def draw(drawn: np.ndarray, found: dict[str, np.ndarray], names: list[str], threshold: float) -> np.ndarray:
    """Draw boxes, and masks if the model has them, over (H, W, 3) pixels."""
    seen = np.flatnonzero(found["scores"] >= threshold)
    for i in seen if "masks" in found else ():
        paint(drawn, found["masks"][i], COLORS[found["classes"][i] % len(COLORS)])
    canvas = Image.fromarray(drawn)
    pen = ImageDraw.Draw(canvas)
    for i in seen:
        box, title = found["boxes"][i], f"{names[found['classes'][i]]} {found['scores'][i]:.2f}"
        print(f"{title} at {', '.join(f'{x:.1f}' for x in box)}")
        pen.rectangle(box.tolist(), outline=COLORS[found["classes"][i] % len(COLORS)], width=2)
        pen.text((box[0] + 3, box[1] + 1), title, fill="white", stroke_width=1, stroke_fill="black")
    return np.array(canvas)


def paint(drawn: np.ndarray, mask: np.ndarray, color: str) -> None:
    """Tint the pixels of an (H, W) mask."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    drawn[mask] = (drawn[mask] + rgb) // 2


if __name__ == "__main__":
    main()

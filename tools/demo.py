#!/usr/bin/env python
"""Detections or label maps, beside ground truth where there is any, and score maps of names, as pictures.

tools/demo.py --config-file F --input photo.jpg --score-map person dog --output DIR MODEL.WEIGHTS W
tools/demo.py --config-file F --dataset shapes_val --count 12 --output DIR MODEL.WEIGHTS W
tools/demo.py --zoo Shapes/denseclip_retinanet_tiny.yaml --dataset shapes_val --output DIR
"""

import argparse
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm

from denseclip_d2 import model_zoo
from denseclip_d2.config import load_config
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.engine import Predictor
from denseclip_d2.engine.setup import check_writable
from denseclip_d2.visualization import grid, image_panels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--config-file", metavar="FILE", help="a config, or weights exported with theirs")
    model.add_argument("--zoo", metavar="NAME", help="a trained model of the zoo, by its config's name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="IMAGE", help="image files")
    source.add_argument("--dataset", help="a registered dataset, whose ground truth is drawn as well")
    parser.add_argument("--count", type=int, default=12, help="images of --dataset (default: %(default)s)")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--score-map", nargs="+", default=[], metavar="NAME",
        help="classes, or any words, whose score maps to draw (--dataset: up to three that are in the image)",
    )  # fmt: skip
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score drawn (%(default)s)")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys, last of all"
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    setup_logger()
    if args.zoo:
        cfg = model_zoo.get_config(args.zoo, trained=True)
        cfg.merge_from_list(args.opts)
    else:
        cfg = load_config(args.config_file, args.opts)
    check_writable(args.output, "--output")
    if args.dataset:
        records = load_datasets([args.dataset], filter_empty=False, check_images=False)[: args.count]
    else:
        records = [{"file_name": path} for path in args.input]
    stems = [Path(record["file_name"]).stem for record in records]
    if len(set(stems)) < len(stems):
        raise ValueError("Two inputs have the same name; their pictures would overwrite each other.")
    predictor = Predictor(cfg)
    rows = []
    for stem, record in zip(stems, tqdm(records, unit="image"), strict=True):
        rows.append(image_panels(predictor, record, args.score_map, args.threshold))
        Image.fromarray(grid(rows[-1:])).save(Path(args.output, f"{stem}.png"))
    Image.fromarray(grid(rows[:4])).save(Path(args.output, "overview.png"))
    print(f"Wrote {len(records)} pictures, and an overview of the first, to {args.output}")


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")

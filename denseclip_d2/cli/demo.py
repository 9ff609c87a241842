"""Show what a model sees in images and videos: detections or label maps, and score maps of names.

tools/demo.py --config-file F --input photo.jpg --score-map person dog --output DIR MODEL.WEIGHTS W
tools/demo.py --config-file F --input photos/ 'more/*.png' clip.mp4 --output DIR MODEL.WEIGHTS W
tools/demo.py --config-file F --camera 0 --output DIR MODEL.WEIGHTS W                # until Ctrl-C
tools/demo.py --config-file F --dataset shapes_val --count 12 --output DIR MODEL.WEIGHTS W
tools/demo.py --zoo Shapes/denseclip_retinanet_tiny.yaml --dataset shapes_val --output DIR

DIR gets a PNG of every image, beside its ground truth where there is any, an MP4 of every video, overview.png
of the first images, and detections.json in COCO's format, with all that the model gives. The exit status is 0
if all was well, 3 if something could not be read and was skipped, 1 if nothing could be done.
"""

import argparse
import sys

from detectron2.utils.logger import setup_logger

from ..config import prepare_run
from ..engine import keep_memory
from ..engine.setup import output_folder
from ..inference import Predictor
from ..visualization import Source, camera, draw_sources, find_sources, of_dataset
from ..visualization.gallery import check_outputs
from .parser import add_opts, command_parser

SKIPPED = 3
"""Exit status where an input was skipped."""


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--config-file", metavar="FILE", help="a config, or weights exported with theirs")
    model.add_argument("--zoo", metavar="NAME", help="a trained model of the zoo, by its config's name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="FILE", help="images, videos, folders, globs")
    source.add_argument("--camera", metavar="DEVICE", help="a camera's number, or a stream's address")
    source.add_argument("--dataset", help="a registered dataset, whose ground truth is drawn as well")
    parser.add_argument("--count", type=int, help="images and frames at most (of --dataset: 12, else all)")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace what DIR has of an earlier run")
    parser.add_argument(
        "--batch", type=int, help="images at once, of one size (8 on a GPU; halved if need be)"
    )
    parser.add_argument(
        "--score-map", nargs="+", default=[], metavar="NAME",
        help="classes, or any words, whose score maps to draw (--dataset: up to three that are in the image)",
    )  # fmt: skip
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score drawn (%(default)s)")
    add_opts(parser)
    return parser


def find(args: argparse.Namespace) -> list[Source]:
    if args.camera:
        return [camera(args.camera)]
    return of_dataset(args.dataset, args.count or 12) if args.dataset else find_sources(args.input)


def main(args: argparse.Namespace) -> int:
    setup_logger()
    for name in ("count", "batch"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; at least 1 is needed.")
    # The zoo's weights bring their config, as all exported weights.
    cfg = prepare_run(f"denseclip://{args.zoo}" if args.zoo else args.config_file, args.opts).cfg
    sources = find(args)
    with output_folder(args.output, "--output"):
        check_outputs(sources, args.output, overwrite=args.overwrite)
        keep_memory(cfg)
        predictor = Predictor(cfg)
        predictor.at_once = args.batch or predictor.at_once
        seen, faults = draw_sources(
            predictor, sources, args.output, names=args.score_map, threshold=args.threshold, count=args.count,
            dataset=args.dataset or "",
        )  # fmt: skip
    if seen:
        print(f"Wrote what was seen in {seen} images, and detections.json, to {args.output}")
    for fault in faults:
        print(f"Skipped: {fault}", file=sys.stderr)
    if not seen:
        print(f"No image was seen, and nothing is written to {args.output}", file=sys.stderr)
        return 1
    return SKIPPED if faults else 0

"""Draw a model's detections or label maps, and score maps of names, on images and videos.

tools/demo.py --config-file F --input photo.jpg --score-map person dog --output DIR MODEL.WEIGHTS W
tools/demo.py --config-file F --input photos/ 'more/*.png' clip.mp4 --output DIR MODEL.WEIGHTS W
tools/demo.py --config-file F --camera 0 --output DIR MODEL.WEIGHTS W                # until Ctrl-C
tools/demo.py --config-file F --dataset shapes_val --count 12 --output DIR MODEL.WEIGHTS W
tools/demo.py --zoo Shapes/denseclip_retinanet_tiny.yaml --dataset shapes_val --output DIR
tools/demo.py --config-file F --names "garden gnome" tree --input a.jpg --output DIR MODEL.WEIGHTS W
tools/demo.py --clip openclip://ViT-B-16-quickgelu/openai --names cat sofa --input a.jpg --output DIR
tools/demo.py --clip W --names cat --background sofa wall floor --input a.jpg --output DIR     # or: 0.2

DIR gets a PNG of every image, beside its ground truth if there is any, an MP4 of every video, overview.png
of the first images, and detections.json in COCO's format. The exit status is 0; it is 3 if unreadable inputs
were skipped, and 1 if all were.
"""

import argparse
import sys
from contextlib import suppress

from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger

from ..config import prepare_run
from ..data.class_names import names_to_find
from ..engine.setup import output_folder
from ..inference import Predictor
from ..model_zoo import get_clip_config
from ..visualization import Source, camera, draw_sources, find_sources, of_dataset
from ..visualization.gallery import check_outputs
from .parser import add_clip, add_opts, command_parser

SKIPPED = 3
"""The exit status if an input was skipped."""


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--config-file", metavar="FILE", help="a config, or exported weights")
    model.add_argument("--zoo", metavar="NAME", help="the config name of a trained model of the zoo")
    add_clip(model)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="FILE", help="images, videos, folders, globs")
    source.add_argument("--camera", metavar="DEVICE", help="number of a camera, or address of a stream")
    source.add_argument("--dataset", help="a registered dataset; draws its ground truth too")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME",
        help="classes to find, in any words, of a model with MODEL.DENSECLIP.CLASSIFIER 'text' "
        "(--dataset: the classes of the dataset)",
    )  # fmt: skip
    parser.add_argument(
        "--background", nargs="+", metavar="NAME",
        help="with --clip and --names: names of what is background, or the cosine of pixels that are not",
    )  # fmt: skip
    parser.add_argument("--count", type=int, help="number of images and frames (--dataset: 12; else all)")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace files of an earlier run in DIR")
    parser.add_argument(
        "--batch-size", type=int, help="batch size (8 on a GPU; halved if memory is too small)"
    )
    parser.add_argument(
        "--score-map", nargs="+", default=[], metavar="NAME",
        help="classes, or any words, to draw score maps of (--dataset: up to three classes of the image)",
    )  # fmt: skip
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score drawn (%(default)s)")
    add_opts(parser)
    return parser


def find(args: argparse.Namespace) -> list[Source]:
    if args.camera:
        return [camera(args.camera)]
    return of_dataset(args.dataset, args.count or 12) if args.dataset else find_sources(args.input)


def config_of(args: argparse.Namespace) -> CfgNode:
    if args.background and not (args.clip and args.names):
        raise ValueError("--background needs --clip, a CLIP alone, and --names.")
    if args.clip:
        with suppress(TypeError, ValueError):  # names
            (args.background,) = map(float, args.background)
        return get_clip_config(args.clip, args.names or (), background=args.background, opts=args.opts)
    # The zoo's weights have a config, as all exported weights.
    return prepare_run(f"denseclip://{args.zoo}" if args.zoo else args.config_file, args.opts).cfg


def main(args: argparse.Namespace) -> int:
    setup_logger()
    for name in ("count", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it has to be at least 1.")
    cfg = config_of(args)
    sources = find(args)
    with output_folder(args.output, "--output"):
        check_outputs(sources, args.output, overwrite=args.overwrite)
        predictor = Predictor(cfg)
        if args.names:
            predictor.set_names(predictor.with_background(args.names))
        elif args.dataset and predictor.takes_names:
            predictor.set_names(names_to_find(cfg, args.dataset))
        predictor.batch_size = args.batch_size or predictor.batch_size
        seen, faults = draw_sources(
            predictor, sources, args.output, names=args.score_map, threshold=args.threshold, count=args.count,
            dataset=args.dataset or "",
        )  # fmt: skip
    if seen:
        print(f"Wrote {seen} images and detections.json to {args.output}")
    for fault in faults:
        print(f"Skipped: {fault}", file=sys.stderr)
    if not seen:
        print(f"No image could be read. Nothing is written to {args.output}", file=sys.stderr)
        return 1
    return SKIPPED if faults else 0

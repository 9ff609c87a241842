"""Export a trained model as a file for other runtimes, and verify the file in its runtime.

tools/export_model.py --config-file F --format onnx --output DIR MODEL.WEIGHTS W
tools/export_model.py --config-file model.safetensors --format torchscript --output DIR    # its own config
tools/export_model.py --config-file denseclip://Shapes/denseclip_mask_rcnn_tiny.yaml --format onnx --output D
tools/export_model.py --config-file F --format onnx --output D --images street.jpg --evaluate MODEL.WEIGHTS W
tools/export_model.py --config-file F --format onnx --precision int8 --output D MODEL.WEIGHTS W
tools/export_model.py --config-file F --format executorch --preprocessed --size 480 640 --output D

DIR gets model.onnx, .ts, .pt2, .aoti.pt2, .pte or .tflite; for a file of heads also decode.py; for a model
that takes any names also names.onnx (.ts, .pt2, .aoti.pt2), their encoder, and tokenizer.json. docs/export.md
describes inputs, outputs and metadata.
"""

import argparse
from pathlib import Path

from detectron2.evaluation import print_csv_format
from detectron2.utils.logger import setup_logger

from ..config import prepare_run
from ..engine.setup import check_writable
from ..evaluation.exported_file import evaluate_file
from ..export import EXPORT_PRECISIONS, FORMATS, export_model, files_of
from .parser import add_config, command_parser, config_and_opts


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add_config(parser, clip=True, help="a config, or exported weights")
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument(
        "--precision", choices=list(EXPORT_PRECISIONS), default="float32",
        help="precision of the weights in ONNX files, and of arithmetic for int8 (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace a file of an earlier export")
    parser.add_argument("--score-map", action="store_true", help="output the score map too")
    parser.add_argument(
        "--preprocessed", action="store_true", help="take images that are already resized and normalized"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"),
        help="take images of this height and width alone, for runtimes that need it",
    )  # fmt: skip
    parser.add_argument(
        "--heads", action="store_true",
        help="end an ONNX file of RetinaNet or FCOS at its heads; decode.py decodes their outputs",
    )  # fmt: skip
    parser.add_argument(
        "--no-paste-masks", dest="paste_masks", action="store_false",
        help="output masks of a fixed size, to paste into boxes",
    )  # fmt: skip
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="FILE",
        help="images with objects of the model's classes, to verify with and to calibrate int8 on (default: "
        "generated shapes; for int8 the first of DATASETS.TRAIN)",
    )  # fmt: skip
    parser.add_argument(
        "--evaluate", action="store_true", help="evaluate the file in its runtime on DATASETS.TEST"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    setup_logger()
    if args.evaluate and args.preprocessed:
        raise ValueError(
            "--evaluate needs a file for images without preprocessing: leave out --preprocessed."
        )
    check_writable(args.output, "--output")
    cfg = prepare_run(*config_and_opts(args)).cfg
    files = [Path(args.output) / name for name in files_of(cfg, args.format, heads=args.heads)]
    for file in files:
        if file.exists() and not args.overwrite:
            raise ValueError(f"{file} exists. Give --overwrite to replace it, or choose another --output.")
    print(f"Exporting the model of {args.clip or args.config_file} ...", flush=True)
    verdict = export_model(
        cfg, files[0], args.format, preprocessed=args.preprocessed, score_map=args.score_map,
        paste_masks=args.paste_masks, size=tuple(args.size) if args.size else None, heads=args.heads,
        images=args.images, precision=args.precision,
    )  # fmt: skip
    print(f"Verified {verdict}")
    size = sum(file.stat().st_size for file in files)
    print(f"Wrote {' and '.join(map(str, files))}: {size / 2**20:.1f} MiB")
    if args.evaluate:
        for name, results in evaluate_file(cfg, files[0], args.format).items():
            print(f"{name}:")
            print_csv_format(results)

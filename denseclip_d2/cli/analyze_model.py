#!/usr/bin/env python
"""Parameters, FLOPs (one multiply-add is one) and activations of a config's model, by module, on the CPU.

tools/analyze_model.py --config-file configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml
tools/analyze_model.py --tasks parameter flop --json cost.json --config-file F MODEL.FPN.OUT_CHANNELS 128

The frozen text encoder stands apart, as in the paper's figures. A two-stage detector is counted with 1000
proposals and 100 masks, a segmentor on the whole image. Weights are random, and none are read.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from denseclip_d2.analysis import TASKS, analyze, format_table
from denseclip_d2.config import load_config
from denseclip_d2.engine.errors import errors_in_a_line
from denseclip_d2.engine.setup import check_writable


def pixels(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels")
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=[*TASKS], metavar="TASK",
        help=f"of {', '.join(TASKS)} (default: all); another option must come after them",
    )  # fmt: skip
    parser.add_argument(
        "--size", nargs=2, type=pixels, default=[800, 1280], metavar=("HEIGHT", "WIDTH"),
        help="of the image, in pixels (default: 800 1280)",
    )  # fmt: skip
    parser.add_argument("--depth", type=int, default=2, help="levels of modules to print (%(default)s)")
    parser.add_argument(
        "--json", metavar="OUT", help="file to write every module's and operator's figures to"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys, last of all"
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    if args.json:
        check_writable(str(Path(args.json).parent), "the folder of --json")
    print(f"Counting {', '.join(args.tasks)} of {args.config_file} ...", flush=True)
    counts = analyze(cfg, args.tasks, args.size)
    print(format_table(counts, args.depth))
    if set(counts) != {"parameter"}:
        print(f"On one image of {args.size[0]} x {args.size[1]} pixels.")
    if "flop" in counts:
        operators = sorted(name.removeprefix("aten::") for name in counts["flop"].not_counted)
        print(f"Operators taken as free of FLOPs: {', '.join(operators)}")
    if args.json:
        figures = {task: {"total": count.total, **asdict(count)} for task, count in counts.items()}
        report = {"config_file": args.config_file, "opts": args.opts, "size": args.size, **figures}
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"Wrote {args.json}")


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse_args())

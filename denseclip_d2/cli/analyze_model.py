"""Count parameters, FLOPs (a multiply-add is one) and activations of a config's model, by module, on the CPU.

tools/analyze_model.py --config-file configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml
tools/analyze_model.py --tasks parameter flop --json cost.json --config-file F MODEL.FPN.OUT_CHANNELS 128

The frozen text encoder stands apart, as in the paper's figures. A two-stage detector is counted with 1000
proposals and 100 masks, a segmentor on the whole image. Weights are random, and none are read.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from ..analysis.cost import TASKS, analyze, format_table
from ..config import prepare_run
from .parser import add_config, check_folder, command_parser, positive, write_json


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add_config(parser)
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=[*TASKS], metavar="TASK",
        help=f"of {', '.join(TASKS)} (default: all); another option must come after them",
    )  # fmt: skip
    parser.add_argument(
        "--size", nargs=2, type=positive, default=[800, 1280], metavar=("HEIGHT", "WIDTH"),
        help="of the image, in pixels (default: 800 1280)",
    )  # fmt: skip
    parser.add_argument("--depth", type=int, default=2, help="levels of modules to print (%(default)s)")
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="file for the figures of every module and operator"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    cfg = prepare_run(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"]).cfg
    check_folder(args.json, "--json")
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
        write_json(args.json, report)
        print(f"Wrote {args.json}")

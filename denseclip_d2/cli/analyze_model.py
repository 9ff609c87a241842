"""Count parameters, FLOPs (one per multiply-add) and activations of a config's model by module, on the CPU.

tools/analyze_model.py --config-file configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml
tools/analyze_model.py --tasks parameter flop --json cost.json --config-file F MODEL.FPN.OUT_CHANNELS 128

The frozen text encoder has its own line, as in the paper. A two-stage detector is counted with 1000 proposals
and 100 masks, a segmentor on the whole image. The command reads no weights.
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
        help=f"some of {', '.join(TASKS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--size", nargs=2, type=positive, default=[800, 1280], metavar=("HEIGHT", "WIDTH"),
        help="the image's, in pixels (800 1280)",
    )  # fmt: skip
    parser.add_argument("--depth", type=int, default=2, help="levels of modules to print (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="file for counts of modules and operators")
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
        print(f"Operators without FLOPs: {', '.join(operators)}")
    if args.json:
        figures = {task: {"total": count.total, **asdict(count)} for task, count in counts.items()}
        about = {"config_file": args.config_file, "opts": args.opts, "size": args.size}
        write_json(args.json, about | figures)
        print(f"Wrote {args.json}")

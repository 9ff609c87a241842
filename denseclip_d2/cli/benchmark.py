"""Measure time and memory of language guidance, as ratios, side by side in one process.

tools/benchmark.py --json benchmark.json                            # all sections, on the GPU if there is one
tools/benchmark.py --only text --classes 80 150 1203
tools/benchmark.py --only exported --config-file denseclip://Shapes/denseclip_retinanet_tiny.yaml
tools/benchmark.py --only inference training --sizes 800x1216 512x512 --config-file F MODEL.DEVICE cpu
tools/benchmark.py --only training --classes 80 150 1203 --batch 1 2 4 --threads 2 1 --plot growth.png

Sections: the text encoder with every prompt alone and packed; the visual encoder without windowed attention
and, where the config has it, with; inference and a step of training of DenseCLIP, of the same detector on
plain CLIP and of Detectron2's own; DenseCLIP's inference as trained, by default and in bfloat16 (options);
kernels and their definitions. When asked for: DenseCLIP's inference and step of training with MODEL.COMPILE,
which takes minutes to begin (compiled); the training loader beside Detectron2's, on DATASETS.TRAIN (loader);
how long the first batch is waited for, on a simulated dataset (start); what a command imports before it
begins (imports); how long a checkpoint is, beside Detectron2's (checkpoint); COCO's figures of simulated
detections, by pycocotools and by hotcoco (figures); exported files beside the model, on
DATASETS.TEST, with what they take on disk and how well they do (exported). Contenders take turns and are
compared within a round; medians over --repeats rounds. Weights, images and objects are random, but for those
of "exported". Of several --classes, --sizes, --batch and --threads, detectors are measured at the first of
all, and at the others of each alone.
"""

import argparse
import os
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

from ..benchmark import CONTENDERS, GROWING, SECTIONS, Settings, format_table
from ..config import prepare_run
from ..engine import keep_memory
from .parser import add_config, check_folder, command_parser, positive, write_json

ASKED_FOR = ("compiled", "loader", "start", "imports", "checkpoint", "figures", "exported")
CONFIG = "configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml"


def size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 800x1216")
    return int(sides[0]), int(sides[1])


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add_config(parser, default=CONFIG, help="of a detector (%(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, metavar="SECTION",
        default=[name for name in SECTIONS if name not in ASKED_FOR],
        help=f"of {', '.join(SECTIONS)} (default: all but {', '.join(ASKED_FOR)})",
    )  # fmt: skip
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS, metavar="DETECTOR",
        help=f"of {', '.join(CONTENDERS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--classes", nargs="+", type=positive, default=[80], metavar="K", help="numbers of classes (80)"
    )
    parser.add_argument(
        "--sizes", nargs="+", type=size, default=[(800, 1216)], metavar="HxW", help="of images (800x1216)"
    )
    parser.add_argument("--batch", nargs="+", type=positive, default=[1], metavar="N", help="images (1)")
    parser.add_argument(
        "--threads", nargs="+", type=positive, default=[torch.get_num_threads()], metavar="N",
        help="of PyTorch, on a CPU (as many as it takes)",
    )  # fmt: skip
    parser.add_argument("--repeats", type=positive, default=5, help="rounds that are timed (%(default)s)")
    parser.add_argument(
        "--images", type=positive, default=118287, help="of the simulated dataset (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="file to write the rows to")
    parser.add_argument(
        "--plot", type=Path, metavar="OUT",
        help="PNG to draw how detectors' time and memory grow in, along what has several values",
    )  # fmt: skip
    return parser


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


def main(args: argparse.Namespace) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # PyTorch's profiler, which measures memory, is talkative
    cfg = prepare_run(args.config_file, args.opts).cfg
    check_folder(args.json, "--json")
    check_folder(args.plot, "--plot")
    keep_memory(cfg)
    settings = Settings(
        cfg, args.classes, args.sizes, args.batch, args.threads, args.repeats, args.contenders, args.images,
        arithmetic=bool(args.plot),
    )  # fmt: skip
    if args.plot and not (settings.grows and {*args.only} & {*GROWING}):
        raise ValueError(
            "--plot has nothing to draw. Give --classes, --sizes, --batch or --threads several values, and "
            f"have one of {', '.join(GROWING)} measured (--only)."
        )
    about = {
        "config_file": args.config_file, "opts": args.opts, "device": device_name(settings.device),
        "torch": torch.__version__, "date": date.today().isoformat(), "batch": args.batch,
        "threads": args.threads, "repeats": args.repeats,
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in about.items() if value), flush=True)
    rows = []
    for name in args.only:
        for table in SECTIONS[name](settings):
            print(f"\n{table[0].section}\n\n{format_table(table)}", flush=True)
            rows += table
    if args.json:
        write_json(args.json, {**about, "rows": [asdict(row) for row in rows]})
        print(f"\nWrote {args.json}")
    if args.plot:
        from ..benchmark.growth import draw  # matplotlib, which measuring needs nothing of

        draw(rows, args.plot)
        print(f"\nWrote {args.plot}")

"""Compare time and memory of DenseCLIP with plain CLIP and Detectron2, side by side in one process.

tools/benchmark.py --json benchmark.json             # the default sections, on the GPU if there is one
tools/benchmark.py --only kernels --classes 80 150 1203
tools/benchmark.py --only names --classes 1 24 1203 --sizes 320x320
tools/benchmark.py --only exported --config-file denseclip://Shapes/denseclip_retinanet_tiny.yaml
tools/benchmark.py --only inference training --sizes 800x1216 512x512 --config-file F MODEL.DEVICE cpu
tools/benchmark.py --only step-names --candidates CLIP --classes 1203 13204 --config-file F
tools/benchmark.py --only image-names --classes 80 1203 --config-file F
tools/benchmark.py --only memory --batch-size 2 --config-file F MODEL.DEVICE cpu
tools/benchmark.py --only training --classes 80 150 1203 --batch-size 1 2 4 --threads 2 1

Default sections:
  visual     the visual encoder without windowed attention, and with it if the config has it
  kernels    kernels and their definitions
  inference  inference of DenseCLIP's detector, plain CLIP's and Detectron2's
  options    DenseCLIP's inference as trained, by default and in bfloat16
  training   a training step of the three detectors
Other sections:
  names      a predictor that is given names in each call, and one whose model was built with them
  step-names a training step of plain CLIP, and of DenseCLIP by text, reading 64 names; without --candidates
             CLIP also reading all names. The names after LVIS's 1203 are those with a color
  image-names inference of DenseCLIP by text, whose heads read all names or 64 of each image
  runtimes   DenseCLIP's inference by PyTorch, and by an exported file in the runtimes of TEST.RUNTIME
  memory     DenseCLIP's training step by definitions, by kernels, and with activations recomputed
  compiled   DenseCLIP with and without MODEL.COMPILE, which takes minutes to start
  loader     the training loader and Detectron2's, on DATASETS.TRAIN: time until it is ready, and of a batch
  exported   exported files and their model, on DATASETS.TEST

The candidates take turns, and each round compares them. The tables have medians over --repeats rounds.
Weights, images and objects are random, except in "loader" and "exported". With several --classes, --sizes,
--batch-size and --threads, each axis is varied on its own; the other axes stay at their first value.
"""

import argparse
import os
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch

from ..benchmark import CANDIDATES, SECTIONS, Settings, format_table
from ..config import prepare_run
from .parser import add_config, check_folder, command_parser, positive, write_json

ON_REQUEST = ("names", "step-names", "image-names", "runtimes", "memory", "compiled", "loader", "exported")
CONFIG = "configs/COCO-Detection/denseclip_retinanet_RN50_FPN_1x.yaml"


def size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 800x1216")
    return int(sides[0]), int(sides[1])


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add_config(parser, default=CONFIG, help="of a detector (%(default)s)")
    add = parser.add_argument
    default = [name for name in SECTIONS if name not in ON_REQUEST]
    add("--only", nargs="+", choices=SECTIONS, metavar="SECTION", default=default, help="sections, see above")
    add(
        "--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES, metavar="DETECTOR",
        help=f"some of {', '.join(CANDIDATES)} (default: all)",
    )  # fmt: skip
    add("--classes", nargs="+", type=positive, default=[80], metavar="K", help="numbers of classes (80)")
    add("--sizes", nargs="+", type=size, default=[(800, 1216)], metavar="HxW", help="of images (800x1216)")
    add("--batch-size", nargs="+", type=positive, default=[1], metavar="N", help="images in a batch (1)")
    threads = [torch.get_num_threads()]
    add(
        "--threads", nargs="+", type=positive, default=threads, metavar="N",
        help="PyTorch's threads on a CPU (default: PyTorch's own choice)",
    )  # fmt: skip
    add("--repeats", type=positive, default=5, help="timed rounds (%(default)s)")
    add("--json", type=Path, metavar="OUT", help="file to write the rows to")
    return parser


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


def main(args: argparse.Namespace) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # PyTorch's profiler, which measures memory, logs a lot
    cfg = prepare_run(args.config_file, args.opts).cfg
    check_folder(args.json, "--json")
    settings = Settings(
        cfg, args.classes, args.sizes, args.batch_size, args.threads, args.repeats, args.candidates
    )
    about = {
        "config_file": args.config_file, "opts": args.opts, "device": device_name(settings.device),
        "torch": torch.__version__, "date": date.today().isoformat(), "batch": args.batch_size,
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

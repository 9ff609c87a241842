"""Check this installation, and say how to fix it. Nothing is downloaded or changed.

tools/doctor.py
DETECTRON2_DATASETS=/data tools/doctor.py --output /runs
tools/doctor.py --datasets coco_2017_train coco_2017_val

Checks Python, packages, Detectron2 and its compiled parts, GPUs, memory, the disk, weights and their hub, and
every image of datasets. "note" marks what only some uses need. The exit status is 1 if something is wrong.
`python -m detectron2.utils.collect_env` lists all versions for a bug report.
"""

import argparse
from pathlib import Path

from ..doctor import examine
from .parser import command_parser

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"  # of a clone


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("--output", default="output", metavar="DIR", help="for checkpoints (%(default)s)")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="only these, which must be present")
    return parser


def main(args: argparse.Namespace) -> int:
    found = []
    for result in examine(REQUIREMENTS, Path(args.output), args.datasets):
        print(result, flush=True)
        found.append(result.state)
    wrong, note, ok = (found.count(state) for state in ("wrong", "note", "ok"))
    print(f"\n{wrong} wrong, {note} to note, {ok} ok")
    return 1 if "wrong" in found else 0

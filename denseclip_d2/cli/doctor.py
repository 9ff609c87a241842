"""Find what is wrong with this set-up, and how to fix it; nothing is downloaded or changed.

tools/doctor.py
DETECTRON2_DATASETS=/data tools/doctor.py --output /runs
tools/doctor.py --datasets coco_2017_train coco_2017_val

Looks at Python, packages, Detectron2 and its compiled parts, GPUs, memory, the disk, weights, the hub that
they come from, and datasets, whose images it opens one by one. "note" is of what some uses need. The exit
status is 1 if something is wrong.
"""

import argparse
from pathlib import Path

from ..doctor import examine
from .parser import command_parser

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"  # of a clone


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("--output", default="output", metavar="DIR", help="of checkpoints (%(default)s)")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="only these, which have to be there")
    return parser


def main(args: argparse.Namespace) -> int:
    found = []
    for finding in examine(REQUIREMENTS, Path(args.output), args.datasets):
        print(finding, flush=True)
        found.append(finding.state)
    wrong, note, ok = (found.count(state) for state in ("wrong", "note", "ok"))
    print(f"\n{wrong} wrong, {note} to note, {ok} as they should be")
    return 1 if "wrong" in found else 0

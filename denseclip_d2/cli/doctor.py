#!/usr/bin/env python
"""What is wrong with this set-up, and the way out; nothing is downloaded or changed.

tools/doctor.py
DETECTRON2_DATASETS=/data tools/doctor.py --output /runs
tools/doctor.py --datasets coco_2017_train coco_2017_val

Looks at Python, packages, Detectron2 and its compiled parts, GPUs, memory, the disk, weights, the hub that
they come from, and datasets, whose images it opens one by one. "note" is of what some uses need. The exit
status is 1 if something is wrong.
"""

import argparse
import sys
from pathlib import Path

try:
    from denseclip_d2.doctor import examine
    from denseclip_d2.engine.errors import errors_in_a_line
except ImportError as error:
    reason = f" ({error.__cause__})" if error.__cause__ else ""
    sys.exit(f"wrong  denseclip_d2 cannot be imported: {error}{reason}\n       -> `make install`")

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output", metavar="DIR", help="of checkpoints (%(default)s)")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="only these, which have to be there")
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    found = []
    for finding in examine(ROOT / "requirements.txt", Path(args.output), args.datasets):
        print(finding, flush=True)
        found.append(finding.state)
    wrong, note, ok = (found.count(state) for state in ("wrong", "note", "ok"))
    print(f"\n{wrong} wrong, {note} to note, {ok} as they should be")
    return 1 if "wrong" in found else 0


if __name__ == "__main__":
    with errors_in_a_line():
        sys.exit(main(parse_args()))

"""Write the report of a training: one HTML file that opens without a network.

tools/report.py output/shapes_mask_rcnn                        # writes output/shapes_mask_rcnn/report.html
tools/report.py output/shapes_mask_rcnn --output mine.html     # also of a run that still trains

Training writes the report at its end (TEST.REPORT). Run this command in the folder where the training ran,
so that relative paths of data are found. It changes nothing in the run.
"""

import argparse
from pathlib import Path

from ..report import write_report
from .parser import command_parser


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("run", type=Path, metavar="OUTPUT_DIR", help="of tools/train_net.py")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the report (default: OUTPUT_DIR/report.html)"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    path = write_report(args.run, args.output)
    print(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB). Open it in a browser.")

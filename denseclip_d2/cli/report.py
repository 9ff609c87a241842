#!/usr/bin/env python
"""The report of a training: one HTML file that opens without a network.

tools/report.py output/shapes_mask_rcnn                        # writes output/shapes_mask_rcnn/report.html
tools/report.py output/shapes_mask_rcnn --output mine.html     # also of a run that is still going on

Training writes it at its end (TEST.REPORT). Run it where the training was run, so that relative paths of data
are found. The run is only read.
"""

import argparse
from pathlib import Path

from denseclip_d2.engine.errors import errors_in_a_line
from denseclip_d2.report import write_report


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="OUTPUT_DIR", help="of tools/train_net.py")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the report (default: OUTPUT_DIR/report.html)"
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    path = write_report(args.run, args.output)
    print(f"Wrote {path} ({path.stat().st_size / 1e6:.1f} MB). Open it in a browser.")


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse_args())

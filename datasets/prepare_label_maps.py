"""Convert the label images of COCO-Stuff, PASCAL Context or Cityscapes to class ids from 0, with 255 ignored.

datasets/README.md says which files to download, and where to put them. Converted files are kept.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installation

from denseclip_d2.data.label_maps import DATASETS, convert_label_maps  # noqa: E402


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line: ``argv``, or ``sys.argv`` if it is None."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: python datasets/prepare_label_maps.py coco_stuff"
    )
    parser.add_argument("dataset", choices=[name for name in DATASETS if name != "ade20k"])
    parser.add_argument(
        "--root", type=Path,
        help="the dataset's folder (default: in $DETECTRON2_DATASETS or ./datasets, where Detectron2 looks)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-partial", action="store_true", help="accept fewer images than the whole dataset has"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the missing label images. Exit with an error if this fails."""
    args = parse_args(argv)
    dataset = DATASETS[args.dataset]
    root = args.root or Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / dataset.folder
    root = root.expanduser().resolve()
    if not root.is_dir():
        sys.exit(f"error: {root} does not exist. datasets/README.md says what to put there.")
    try:
        print(convert_label_maps(dataset, root, args.allow_partial))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""Generate the "shapes" dataset: small images of colored shapes, with COCO annotations and label images."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout without installation

from denseclip_d2.shapes.captions import ImageCaptionPairs, write_pairs  # noqa: E402
from denseclip_d2.shapes.dataset import add_derived, generate_shapes, shapes_info  # noqa: E402
from denseclip_d2.shapes.vocabulary import VOCABULARIES  # noqa: E402


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line: ``argv``, or ``sys.argv`` if it is None."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python datasets/prepare_shapes.py --root /data/shapes --num-train 5000",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--vocabulary", choices=VOCABULARIES, default="shapes", help="18 classes, or 192, long-tailed"
    )
    parser.add_argument(
        "--root",
        type=Path,
        default=argparse.SUPPRESS,
        help="directory to write (default: the vocabulary's name in $DETECTRON2_DATASETS, or in ./datasets)",
    )
    parser.add_argument(
        "--captions", type=int, default=0, metavar="N",
        help="write N images with captions instead, as captions.tsv and images/ in --root",
    )  # fmt: skip
    parser.add_argument("--num-train", type=int, default=2000, help="number of training images")
    parser.add_argument("--num-val", type=int, default=200, help="number of validation images")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    args = parser.parse_args(argv)
    datasets = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    name = f"{args.vocabulary}_captions" if args.captions else args.vocabulary
    args.root = getattr(args, "root", datasets / name)
    return args


def info_on_disk(root: Path) -> dict | None:
    """Return the "info" entry of the dataset in ``root``, or None without a dataset."""
    path = root / "annotations" / "instances_train.json"
    return json.loads(path.read_bytes())["info"] if path.is_file() else None


def main(argv: Sequence[str] | None = None) -> None:
    """Generate the dataset, or its missing folders. Exit with an error if ``root`` holds another one."""
    args = parse_args(argv)
    root = args.root.expanduser().resolve()
    vocabulary = VOCABULARIES[args.vocabulary]
    if args.captions:
        try:
            write_pairs(ImageCaptionPairs(args.captions, seed=args.seed, vocabulary=vocabulary), root)
        except (FileExistsError, ValueError) as error:
            sys.exit(f"error: {error}")
        print(f"Wrote {args.captions} images and their captions to {root}")
        return
    parameters = {
        "num_train": args.num_train,
        "num_val": args.num_val,
        "seed": args.seed,
        "vocabulary": vocabulary,
    }
    found = info_on_disk(root)
    if found == shapes_info(**parameters):
        added = add_derived(root, vocabulary)  # earlier versions wrote fewer folders
        print(f"{root} already holds this dataset: {'added label images' if added else 'nothing to do'}")
        return
    if found is not None:
        sys.exit(f"error: {root} holds another dataset: {found}. Delete it or choose another --root")

    print(f"Generating {args.num_train} training and {args.num_val} validation images, seed {args.seed}")
    try:
        generate_shapes(root, **parameters)
    except (FileExistsError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"Wrote them to {root}")


if __name__ == "__main__":
    main()

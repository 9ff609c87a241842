"""Make a CLIP of an image classifier of timm and a sentence encoder.

tools/make_clip.py --classifier tf_efficientnet_lite0 --weights efficientnet-lite0.pth \\
    --sentence-encoder all-MiniLM-L6-v2 --licenses LICENSE-of-the-classifier LICENSE-of-the-encoder \\
    --output output/joined_clip

docs/photographs.md says where to get both parts without an account, and evaluates the CLIP.
"""

import argparse
from pathlib import Path

from ..clip_models import LOCAL
from ..data.coco_source import read_lines
from ..model_zoo.card import joined_clip_card, write_card
from ..pretraining import IMAGENET, ImageClassifier, join, write_clip
from ..utils.atomic import atomic_dir
from ..utils.text import read_text
from .parser import command_parser


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="the new folder of the CLIP")
    add("--classifier", default="tf_efficientnet_lite0", metavar="NAME", help="timm's name (%(default)s)")
    add("--weights", required=True, metavar="FILE", help="the classifier's weights, with its last layer")
    add("--classes", type=Path, metavar="FILE", help="a name a line, in order (default: ImageNet's 1000)")
    add(
        "--sentence-encoder", type=Path, required=True, metavar="DIR",
        help="model and tokenizer of Hugging Face",
    )  # fmt: skip
    add(
        "--licenses", type=Path, nargs="+", required=True, metavar="FILE",
        help="of both parts, for the model card",
    )  # fmt: skip
    return parser


def main(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError, OSError, ImportError: see :class:`ImageClassifier` and :func:`join`; the folder exists.
    """
    if args.output.exists():
        raise FileExistsError(f"--output {args.output} exists. Choose another folder.")
    names = read_lines(args.classes) if args.classes else IMAGENET
    licenses = [read_text(file) for file in args.licenses]
    classifier = ImageClassifier.from_file(args.classifier, args.weights, len(names))
    model = join(classifier, args.sentence_encoder, names)
    with atomic_dir(args.output) as folder:
        write_clip(model, classifier, args.sentence_encoder, folder, args.output.resolve())
        card = joined_clip_card(args.output.name, classifier.name, args.sentence_encoder.name, licenses)
        write_card(folder, card)
    print(f"Wrote {args.output}: --clip {LOCAL}{args.output}, or MODEL.DENSECLIP.CLIP_MODEL")

"""Pretrain a small CLIP on images with captions, or evaluate one zero-shot on the generated shapes.

tools/pretrain_clip.py --output output/clip                        # on generated images of 192 classes
tools/pretrain_clip.py --output output/clip --pairs DIR/captions.tsv --model RN50-quickgelu
tools/pretrain_clip.py --eval-only --weights output/clip/clip.pt --seed 12345 --json knows.json
"""

import argparse
import json
from pathlib import Path

import open_clip
from detectron2.utils.file_io import PathManager

from ..checkpoint.readers import read_weights
from ..data.caption_table import CaptionTable
from ..engine.setup import check_writable
from ..pretraining import PRECISIONS, Recipe, ZeroShotEvaluator, check_architecture, preprocess_of, pretrain
from ..shapes.captions import ImageCaptionPairs, write_pairs
from .parser import check_folder, command_parser, write_json


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--model", default="RN-shapes-quickgelu", help="open_clip's name of an architecture (%(default)s)")
    add("--output", type=Path, metavar="DIR", help="for clip.pt, metrics.json and what --resume needs")
    add("--pairs", type=Path, metavar="TABLE", help="filepath and title, tab-separated; default: generated")
    add("--num-pairs", type=int, default=24_000, help="number to generate into DIR/pairs (%(default)s)")
    add("--steps", type=int, default=Recipe.steps, help="default: %(default)s")
    add("--batch-size", type=int, default=Recipe.batch_size, help="default: %(default)s")
    add(
        "--hard-negative-group-size",
        type=int,
        default=Recipe.group_size,
        help="neighbors kept together, hard negatives (%(default)s)",
    )
    add("--learning-rate", type=float, default=Recipe.learning_rate, help="default: %(default)s")
    add(
        "--muon-lr",
        type=float,
        default=Recipe.muon_lr,
        help="learning rate of Muon; 0: only AdamW (%(default)s)",
    )
    add(
        "--text-uniformity-weight",
        type=float,
        default=Recipe.uniformity_weight,
        help="weight of the loss between texts (%(default)s)",
    )
    add("--period", type=int, default=Recipe.period, help="steps between checkpoints (%(default)s)")
    add("--images", type=int, default=Recipe.num_evaluated, help="number to evaluate on (%(default)s)")
    add("--workers", type=int, default=1, help="processes that read images (%(default)s)")
    add("--precision", choices=PRECISIONS, default=Recipe.precision, help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--resume", action="store_true", help="continue the run in DIR")
    add("--eval-only", action="store_true", help="evaluate --weights on images generated from --seed")
    add("--weights", metavar="FILE", help="with --eval-only: clip.pt, or a denseclip:// or openclip:// path")
    add("--json", type=Path, metavar="OUT", help="with --eval-only: file for the metrics")
    return parser


def main(args: argparse.Namespace) -> None:
    needed = "weights" if args.eval_only else "output"
    if getattr(args, needed) is None:
        raise argparse.ArgumentError(None, f"--{needed} is needed")
    (measure if args.eval_only else train)(args)


def measure(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError, OSError: no weights, or of another architecture; a negative seed; no folder to write to.
    """
    check_architecture(args.model)
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: at least 0 is needed.")
    check_folder(args.json, "--json")
    model = open_clip.create_model(args.model)
    names = model.state_dict().keys()
    local = PathManager.get_local_path(args.weights)
    weights = read_weights(local, lambda weights: len(names & weights.keys()))["model"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{args.weights} does not hold the weights of {args.model}: {reason}") from error
    tokenizer = open_clip.get_tokenizer(args.model)
    evaluate = ZeroShotEvaluator(
        args.model, preprocess_of(model), tokenizer, num_images=args.images, seed=args.seed
    )
    figures = evaluate(model)
    report = {"weights": args.weights, "model": args.model, "seed": args.seed, **figures}
    print(json.dumps(report, indent=2))
    write_json(args.json, report)


def train(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError, OSError: see :class:`Recipe`, :class:`CaptionTable` and :func:`pretrain`.
    """
    recipe = Recipe(
        model=args.model, steps=args.steps, batch_size=args.batch_size,
        group_size=args.hard_negative_group_size, uniformity_weight=args.text_uniformity_weight,
        learning_rate=args.learning_rate, muon_lr=args.muon_lr, seed=args.seed, period=args.period,
        num_evaluated=args.images, precision=args.precision,
    )  # fmt: skip
    check_writable(str(args.output), "--output")
    table = args.pairs or args.output / "pairs" / "captions.tsv"
    if not args.pairs and not table.exists():
        print(f"Generating {args.num_pairs} images with captions into {table.parent} ...", flush=True)
        write_pairs(ImageCaptionPairs(args.num_pairs, seed=args.seed), table.parent)
    path = pretrain(recipe, CaptionTable(table), args.output, resume=args.resume, workers=args.workers)
    print(f"Wrote {path}")

"""Make a CLIP of an image classifier of timm and a sentence encoder, or evaluate a CLIP on photographs.

tools/make_clip.py --classifier tf_efficientnet_lite0 --weights efficientnet-lite0.pth \\
    --sentence-encoder all-MiniLM-L6-v2 --licenses LICENSE-of-the-classifier LICENSE-of-the-encoder \\
    --output output/joined_clip
tools/make_clip.py --eval-only --output output/joined_clip --boxes val.json images --label-maps FOLDER

docs/photographs.md says where to get both parts without an account.
"""

import argparse
import json
from pathlib import Path

import open_clip
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from ..clip_models import LOCAL
from ..data.checks import load_datasets
from ..data.class_names import clean_class_names
from ..data.coco_source import read_lines
from ..data.custom_dataset import custom_test_boxes
from ..data.semantic import load_semantic_folder
from ..model_zoo.card import joined_clip_card, write_card
from ..pretraining import IMAGENET, ImageClassifier, PhotographEvaluator, join, write_clip
from ..utils.atomic import atomic_dir
from ..utils.text import read_text
from .parser import check_folder, command_parser, write_json


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="the new folder of the CLIP")
    add("--classifier", default="tf_efficientnet_lite0", metavar="NAME", help="timm's name (%(default)s)")
    add("--weights", metavar="FILE", help="the classifier's weights, with its last layer")
    add("--classes", type=Path, metavar="FILE", help="a name a line, in order (default: ImageNet's 1000)")
    add("--sentence-encoder", type=Path, metavar="DIR", help="model and tokenizer of Hugging Face")
    add("--licenses", type=Path, nargs="+", metavar="FILE", help="of both parts, for the model card")
    add("--eval-only", action="store_true", help="evaluate the CLIP in --output zero-shot")
    add("--boxes", nargs=2, metavar=("JSON", "IMAGES"), help="with --eval-only: COCO's format")
    add("--label-maps", type=Path, metavar="DIR", help="with --eval-only: has images/val and labels/val")
    add("--denoise", type=float, default=0.0, metavar="P", help="see SCORE_MAP.DENOISE (%(default)s)")
    add("--json", type=Path, metavar="OUT", help="with --eval-only: file for the metrics")
    return parser


def main(args: argparse.Namespace) -> None:
    needed = ("boxes", "label_maps") if args.eval_only else ("weights", "sentence_encoder", "licenses")
    given = [getattr(args, name) for name in needed]
    if not (any(given) if args.eval_only else all(given)):
        flags = [f"--{name.replace('_', '-')}" for name in needed]
        raise argparse.ArgumentError(None, f"{(' or ' if args.eval_only else ' and ').join(flags)} needed")
    (measure if args.eval_only else make)(args)


def make(args: argparse.Namespace) -> None:
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
    print(f"Wrote {args.output}: MODEL.DENSECLIP.CLIP_MODEL {LOCAL}{args.output}")


def measure(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError, OSError: no CLIP in the folder; see :func:`load_datasets`.
    """
    check_folder(args.json, "--json")
    name = f"{LOCAL}{args.output}"
    model = open_clip.create_model(name)
    evaluator = PhotographEvaluator(name, model, open_clip.get_tokenizer(name))
    report: dict = {"clip": str(args.output)}
    if args.boxes:
        dataset = custom_test_boxes(args.boxes, masks=False)
        records = load_datasets([dataset], filter_empty=True, check_images=True)
        classes = clean_class_names(MetadataCatalog.get(dataset).thing_classes)
        report["boxes"] = evaluator.classify_boxes(tqdm(records, unit="image"), classes)
    if args.label_maps:
        names = read_lines(args.label_maps / "classes.txt")
        folders = (args.label_maps / part / "val" for part in ("images", "labels"))
        maps = tqdm(load_semantic_folder(*folders), unit="image")
        report["pixels"] = evaluator.label_pixels(maps, names, args.denoise)
    print(json.dumps(report, indent=2))
    write_json(args.json, report)

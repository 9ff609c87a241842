"""Measure how well a model's score maps point at the named objects, for its classes and for other names.

tools/pointing_game.py --config-file configs/Shapes192/denseclip_semantic_fpn_tiny_seen.yaml \\
    --dataset shapes192_val --json words.json MODEL.WEIGHTS output/shapes192_semantic_fpn_seen/model_final.pth
tools/pointing_game.py --clip openclip://ViT-B-16-quickgelu/openai --dataset coco_2017_val    # a CLIP alone
"""

import argparse
import json
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from ..config import prepare_run
from ..data import clean_class_names
from ..data.checks import load_datasets
from ..evaluation import evaluate_pointing
from ..inference import Predictor
from .parser import add_config, check_folder, command_parser, config_and_opts, write_json


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add_config(parser, clip=True, help="a config, or exported weights")
    add("--dataset", required=True, help="a registered dataset with objects of any classes")
    add("--json", type=Path, metavar="OUT", help="file to write the results to")
    return parser


def main(args: argparse.Namespace) -> None:
    setup_logger()
    cfg = prepare_run(*config_and_opts(args)).cfg
    check_folder(args.json, "--json")
    records = load_datasets([args.dataset], filter_empty=True, check_images=True)
    names = MetadataCatalog.get(args.dataset).get("thing_classes")
    if not names:
        raise ValueError(f"{args.dataset} has no names of objects: its metadata lacks thing_classes.")
    figures = evaluate_pointing(Predictor(cfg), tqdm(records, unit="image"), clean_class_names(names))
    report = {"weights": cfg.MODEL.WEIGHTS, "dataset": args.dataset, **figures}
    print(json.dumps(report, indent=2))
    write_json(args.json, report)

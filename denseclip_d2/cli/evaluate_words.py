#!/usr/bin/env python
"""Say how well a model's score maps point at what is named, for its classes and for names it has no class of.

tools/evaluate_words.py --config-file configs/Shapes192/denseclip_semantic_fpn_tiny_seen.yaml \\
    --dataset shapes192_val --json words.json MODEL.WEIGHTS output/shapes192_semantic_fpn_seen/model_final.pth
"""

import argparse
import json
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from denseclip_d2.config import load_config
from denseclip_d2.data import readable_names
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.engine import Predictor, evaluate_words, keep_memory
from denseclip_d2.engine.errors import errors_in_a_line
from denseclip_d2.engine.setup import check_writable


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="a config, or weights exported with theirs")
    add("--dataset", required=True, help="a registered dataset with objects, of any classes")
    add("--json", type=Path, metavar="OUT", help="file to write the figures to")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys, last of all")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    setup_logger()
    cfg = load_config(args.config_file, args.opts)
    if args.json:
        check_writable(str(args.json.parent), "the folder of --json")
    records = load_datasets([args.dataset], filter_empty=True, check_images=True)
    names = MetadataCatalog.get(args.dataset).get("thing_classes")
    if not names:
        raise ValueError(f"{args.dataset} has no objects with names: its metadata lacks thing_classes.")
    keep_memory(cfg)
    figures = evaluate_words(Predictor(cfg), tqdm(records, unit="image"), readable_names(names))
    text = json.dumps({"weights": cfg.MODEL.WEIGHTS, "dataset": args.dataset, **figures}, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse_args())

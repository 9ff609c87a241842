"""Describe a dataset, list what is odd in it, and draw images of it as the trainer sees them.

tools/browse_dataset.py --config-file configs/Shapes/denseclip_retinanet_tiny.yaml --output output/browse
tools/browse_dataset.py --config-file F --dataset my_val --count 20 --output DIR INPUT.MIN_SIZE_TRAIN "(640,)"

Nothing is trained, and no weights are read. DIR gets statistics.json and pictures.png.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger
from PIL import Image
from tabulate import tabulate

from ..clip_models import get_clip_architecture
from ..config import prepare_run
from ..data.checks import load_datasets
from ..data.mapper import build_mapper
from ..data.statistics import Statistics, statistics_of
from ..data.tasks import is_semantic
from ..data.transforms import ResizeShortestEdge
from ..engine.setup import check_writable
from ..language.tokenizers import get_tokenizer
from ..visualization import grid
from ..visualization.training_images import training_panels
from .parser import add_config, command_parser, write_json


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add_config(parser)
    parser.add_argument("--dataset", help="a registered one (default: the first of DATASETS.TRAIN)")
    parser.add_argument("--count", type=int, default=6, help="images drawn (default: %(default)s)")
    parser.add_argument("--output", required=True, metavar="DIR")
    return parser


def main(args: argparse.Namespace) -> None:
    setup_logger()
    cfg = prepare_run(args.config_file, args.opts).cfg
    check_writable(args.output, "--output")
    name = args.dataset or next(iter(cfg.DATASETS.TRAIN), "")
    records = load_datasets([name] if name else [], filter_empty=False, check_images=True)
    kind = "stuff_classes" if is_semantic(cfg) else "thing_classes"
    class_names = MetadataCatalog.get(name).get(kind, [])
    tokenizer = get_tokenizer(get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL))

    def scale_of(height: int, width: int) -> float:
        shape = ResizeShortestEdge.get_output_shape(
            height, width, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        )
        return shape[0] / height

    def tokens_of(words: str) -> int:
        return len(tokenizer.encode([words])[0]) - tokenizer.start - 1

    statistics = statistics_of(records, class_names, scale_of=scale_of, tokens_of=tokens_of)
    print(report(name, statistics))
    write_json(Path(args.output, "statistics.json"), asdict(statistics))
    mapper = build_mapper(cfg)
    chosen = np.random.default_rng(max(cfg.SEED, 0)).permutation(len(records))[: args.count]
    rows = [training_panels(records[i], mapper, cfg.INPUT.FORMAT, class_names) for i in sorted(chosen)]
    Image.fromarray(grid(rows)).save(Path(args.output, "pictures.png"))
    print(f"Wrote statistics.json and pictures.png, of {len(rows)} images, to {args.output}")


def report(name: str, statistics: Statistics) -> str:
    what = "objects" if statistics.sizes else "pixels"
    most = sorted(statistics.objects, key=lambda c: -statistics.objects[c])
    rows = [[c, statistics.objects[c], statistics.in_images[c]] for c in most]
    if len(rows) > 30:
        rows = [*rows[:20], ["...", "", ""], *rows[-9:]]
    lines = [
        f"{name}: {statistics.images} images, {statistics.labeled} of them labeled",
        tabulate(rows, ["class", what, "images"], tablefmt="github"),
        *(f"{kind}: {count}" for kind, count in statistics.sizes.items()),
        "Odd:" if statistics.odd else "Nothing odd.",
        *(f"  {oddity}" for oddity in statistics.odd),
    ]
    return "\n".join(lines)

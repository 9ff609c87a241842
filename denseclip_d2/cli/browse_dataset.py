"""Describe a dataset, list what is odd in it, and draw its images as training sees them.

tools/browse_dataset.py --config-file configs/Shapes/denseclip_retinanet_tiny.yaml --output output/browse
tools/browse_dataset.py --config-file F --dataset my_val --count 20 --output DIR INPUT.MIN_SIZE_TRAIN "(640,)"

DIR gets statistics.json and images.png. The command trains nothing and reads no weights.
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
    parser.add_argument("--dataset", help="a registered dataset (default: the first of DATASETS.TRAIN)")
    parser.add_argument("--count", type=int, default=6, help="number of images to draw (%(default)s)")
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
    tokenizer = get_tokenizer(
        get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL), cfg.MODEL.DENSECLIP.PROMPT.TOKENIZER
    )

    def scale_of(height: int, width: int) -> float:
        sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        return ResizeShortestEdge.get_output_shape(height, width, *sizes)[0] / height

    def tokens_of(words: str) -> int:
        return len(tokenizer.encode([words])[0]) - tokenizer.start - 1

    statistics = statistics_of(records, class_names, scale_of=scale_of, tokens_of=tokens_of)
    print(report(name, statistics))
    write_json(Path(args.output, "statistics.json"), asdict(statistics))
    mapper = build_mapper(cfg)
    chosen = np.random.default_rng(max(cfg.SEED, 0)).permutation(len(records))[: args.count]
    rows = [training_panels(records[i], mapper, cfg.INPUT.FORMAT, class_names) for i in sorted(chosen)]
    Image.fromarray(grid(rows)).save(Path(args.output, "images.png"))
    print(f"Wrote statistics.json and images.png with {len(rows)} images to {args.output}")


def report(name: str, statistics: Statistics) -> str:
    counts = sorted(statistics.objects.items(), key=lambda pair: -pair[1])
    rows: list[list] = [[name, count, statistics.in_images[name]] for name, count in counts]
    if len(rows) > 30:
        rows = [*rows[:20], ["...", "", ""], *rows[-9:]]
    headers = ["class", "objects" if statistics.sizes else "pixels", "images"]
    lines = [
        f"{name}: {statistics.images} images, {statistics.labeled} of them labeled",
        tabulate(rows, headers, tablefmt="github"),
        *(f"{kind}: {count}" for kind, count in statistics.sizes.items()),
        "Oddities:" if statistics.odd else "No oddities.",
        *(f"  {oddity}" for oddity in statistics.odd),
    ]
    return "\n".join(lines)

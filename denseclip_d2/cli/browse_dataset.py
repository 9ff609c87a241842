#!/usr/bin/env python
"""What a data set holds and what in it is odd, and pictures of it as the trainer sees them.

tools/browse_dataset.py --config-file configs/Shapes/denseclip_retinanet_tiny.yaml --output output/browse
tools/browse_dataset.py --config-file F --dataset my_val --count 20 --output DIR INPUT.MIN_SIZE_TRAIN "(640,)"

Nothing is trained, and no weights are read. DIR gets statistics.json and pictures.png.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils.logger import setup_logger
from PIL import Image
from tabulate import tabulate

from denseclip_d2.clip_models import get_clip_architecture
from denseclip_d2.config import load_config
from denseclip_d2.data.checks import load_datasets
from denseclip_d2.data.mapper import build_mapper
from denseclip_d2.data.statistics import Statistics, statistics_of
from denseclip_d2.data.tasks import is_semantic
from denseclip_d2.data.transforms import ResizeShortestEdge
from denseclip_d2.engine.errors import errors_in_a_line
from denseclip_d2.engine.setup import check_writable
from denseclip_d2.language.tokenizers import get_tokenizer
from denseclip_d2.visualization import grid
from denseclip_d2.visualization.training_images import training_panels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--dataset", help="a registered one (default: the first of DATASETS.TRAIN)")
    parser.add_argument("--count", type=int, default=6, help="images drawn (default: %(default)s)")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys, last of all"
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    setup_logger()
    cfg = load_config(args.config_file, args.opts)
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
    Path(args.output, "statistics.json").write_text(
        json.dumps(asdict(statistics), indent=2), encoding="utf-8"
    )
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
        f"{name}: {statistics.images} images, {statistics.labelled} of them labelled",
        tabulate(rows, ["class", what, "images"], tablefmt="github"),
        *(f"{kind}: {count}" for kind, count in statistics.sizes.items()),
        "Odd:" if statistics.odd else "Nothing odd.",
        *(f"  {oddity}" for oddity in statistics.odd),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    with errors_in_a_line():
        main(parse_args())

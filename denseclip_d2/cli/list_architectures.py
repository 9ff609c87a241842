"""List which of open_clip's architectures a config can be built with, and why not the others.

tools/list_architectures.py
tools/list_architectures.py --json OUT --config-file configs/Shapes/denseclip_retinanet_tiny.yaml
tools/list_architectures.py --names ViT-B-16-SigLIP convnext_base_w

Models are built on the meta device, which needs no memory. An architecture counts if the model is built, its
tensors are open_clip's, and an image gets an embedding for every cell. If the tokenizer is not on this
machine, the text encoder is built separately, and the line says so.
"""

import argparse
from pathlib import Path

import open_clip
import torch
from tqdm import tqdm

from ..analysis.architectures import check_architectures
from ..config import load_config
from .parser import add_config, check_folder, command_parser, write_json

CONFIG = "configs/ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN50_80k.yaml"


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add_config(parser, opts=False, default=CONFIG, help="(default: %(default)s)")
    add = parser.add_argument
    add("--names", nargs="+", metavar="NAME", default=open_clip.list_models(), help="(default: all)")
    add("--json", type=Path, metavar="OUT", help="file to write the table to")
    return parser


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu"])
    check_folder(args.json, "--json")
    rows = []
    for name in tqdm(args.names, unit="architecture"):
        try:
            built, note = True, check_architectures(cfg, name)
        except (ValueError, ImportError) as error:
            built, note = False, str(error)
        rows.append({"name": name, "built": built, "note": note})
    width = max(len(name) for name in args.names)
    for row in rows:
        print(f"{row['name']:{width}}  {'yes' if row['built'] else 'no '}  {row['note']}".rstrip())
    print(
        f"{sum(row['built'] for row in rows)} of {len(rows)} architectures are built from {args.config_file}."
    )
    write_json(args.json, rows)

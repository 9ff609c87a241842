"""List which of open_clip's architectures a config can be built with, and why not the others.

tools/list_architectures.py
tools/list_architectures.py --json OUT --config-file configs/Shapes/denseclip_retinanet_tiny.yaml
tools/list_architectures.py --names ViT-B-16-SigLIP convnext_base_w

Models are built on the meta device, without memory. An architecture counts when all of it is built, the
tensors are those of open_clip's own model, and an image gets an embedding for every cell. Where the tokenizer
is on a hub and not here, the text encoder is built beside the rest, and the line says so.
"""

import argparse
from pathlib import Path

import open_clip
import torch
from tqdm import tqdm

from ..analysis.architectures import Finding, survey
from ..config import load_config
from .parser import add_config, check_folder, command_parser, write_json

CONFIG = "configs/ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN50_80k.yaml"


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    add_config(parser, opts=False, default=CONFIG, help="(default: %(default)s)")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="architectures (default: all of open_clip's)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="file to write the findings to")
    return parser


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu"])
    check_folder(args.json, "--json")
    names = args.names or open_clip.list_models()
    findings = [survey(cfg, name) for name in tqdm(names, unit="architecture")]
    print(table(findings))
    built = sum(finding.built for finding in findings)
    print(f"{built} of {len(findings)} architectures are built from {args.config_file}.")
    write_json(args.json, [vars(finding) for finding in findings])


def table(findings: list[Finding]) -> str:
    width = max(len(finding.name) for finding in findings)
    return "\n".join(f"{f.name:{width}}  {'yes' if f.built else 'no '}  {f.note}".rstrip() for f in findings)

#!/usr/bin/env python
"""Which of open_clip's architectures a config can be built with, and why not the others.

tools/list_architectures.py
tools/list_architectures.py --json OUT --config-file configs/Shapes/denseclip_retinanet_tiny.yaml
tools/list_architectures.py --names ViT-B-16-SigLIP convnext_base_w

Models are built on the meta device, without memory. An architecture counts when all of it is built, the
tensors are those of open_clip's own model, and an image gets an embedding for every cell. Where the tokenizer
is on a hub and not here, the text encoder is built beside the rest, and the line says so.
"""

import argparse
import json
from pathlib import Path

import open_clip
import torch
from tqdm import tqdm

from denseclip_d2.config import load_config
from denseclip_d2.engine.errors import errors_in_a_line
from denseclip_d2.engine.setup import check_writable
from denseclip_d2.survey import Finding, survey

CONFIG = "configs/ADE20K-SemanticSegmentation/denseclip_semantic_fpn_RN50_80k.yaml"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=CONFIG, metavar="FILE", help="(default: %(default)s)")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="architectures (default: all of open_clip's)"
    )
    parser.add_argument("--json", metavar="OUT", help="file to write the findings to")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, ["MODEL.DEVICE", "cpu"])
    if args.json:
        check_writable(str(Path(args.json).parent), "the folder of --json")
    names = args.names or open_clip.list_models()
    findings = [survey(cfg, name) for name in tqdm(names, unit="architecture")]
    print(table(findings))
    built = sum(finding.built for finding in findings)
    print(f"{built} of {len(findings)} architectures are built from {args.config_file}.")
    if args.json:
        Path(args.json).write_text(
            json.dumps([vars(finding) for finding in findings], indent=2), encoding="utf-8"
        )


def table(findings: list[Finding]) -> str:
    width = max(len(finding.name) for finding in findings)
    return "\n".join(f"{f.name:{width}}  {'yes' if f.built else 'no '}  {f.note}".rstrip() for f in findings)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    with errors_in_a_line():
        main(parse_args())

"""Convert any weights that this project reads to one self-describing .safetensors file.

tools/convert_checkpoint.py --input released.pth --config-file F --output model.safetensors
tools/convert_checkpoint.py --input model_final.pth --config-file F --precompute-text --output a.safetensors
tools/convert_checkpoint.py --input model_final.pth --config-file F --omit-text-encoder --output b.safetensors
tools/demo.py --config-file a.safetensors --input photo.jpg --output drawn      # its header is the config
tools/convert_checkpoint.py --input D/model_final.pth --config-file F --output hub/a.safetensors --model-card

The authors' DenseCLIP checkpoints go with the configs of their names, under configs/.
"""

import argparse
import logging
from pathlib import Path

from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from ..builder import build_model, class_names_of
from ..checkpoint import DenseCLIPCheckpointer
from ..config import prepare_run
from ..engine.setup import check_writable
from ..export.safetensors import check_output, export
from ..guidance import guidance_of
from ..model_zoo.card import check_card, find_metrics, model_card, write_card
from .parser import add_config, command_parser


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    parser.add_argument("--input", required=True, metavar="FILE", help="weights of the whole model")
    add_config(parser, help="the config of the weights")
    parser.add_argument("--output", required=True, metavar="OUT", help="the .safetensors to write")
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--precompute-text", action="store_true",
        help="store precomputed text embeddings and omit the text encoder, for inference",
    )  # fmt: skip
    text.add_argument(
        "--omit-text-encoder", action="store_true",
        help="omit the text encoder, which is then read from the CLIP of MODEL.DENSECLIP.TEXT_WEIGHTS",
    )  # fmt: skip
    parser.add_argument("--half", action="store_true", help="write float16, at half the size")
    parser.add_argument("--allow-partial", action="store_true", help="accept weights that lack tensors")
    parser.add_argument(
        "--model-card", action="store_true",
        help="also write README.md beside OUT, the page of the model on a hub",
    )  # fmt: skip
    parser.add_argument("--license", default="apache-2.0", help="the card's license identifier (%(default)s)")
    parser.add_argument(
        "--metrics", metavar="FILE",
        help="metrics.json of a training, for the card (default: the one beside a model_final.pth)",
    )  # fmt: skip
    return parser


def main(args: argparse.Namespace) -> None:
    setup_logger(name="fvcore").setLevel(logging.INFO)
    check_output(args.output)
    if not args.input:
        raise ValueError("--input is empty.")
    folder = Path(args.output).parent
    check_writable(str(folder), "the folder of --output")
    if args.model_card:
        check_card(folder)
    metrics = find_metrics(args.metrics, args.input)
    opts = [*args.opts, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", args.input]
    cfg = prepare_run(args.config_file, opts).cfg
    print(f"Building the model of {args.config_file} ...", flush=True)
    model = build_model(cfg).eval()
    guided = guidance_of(model)
    if args.precompute_text and guided is None:
        raise ValueError("--precompute-text: this model is without language, and has no text embeddings.")
    DenseCLIPCheckpointer(
        model, for_training=False, allow_partial=args.allow_partial,
        text_weights=cfg.MODEL.DENSECLIP.TEXT_WEIGHTS,
    ).load(args.input)  # fmt: skip
    if args.precompute_text and guided:
        guided.language.precompute_()
        cfg.MODEL.DENSECLIP.PROMPT.PRECOMPUTED = True
    source = PathManager.get_local_path(args.input.partition("?")[0])
    class_names = class_names_of(model, cfg)
    export(
        model, cfg, class_names, source=source, output=args.output, half=args.half,
        omit_text_encoder=args.omit_text_encoder,
    )  # fmt: skip
    size = Path(args.output).stat().st_size
    if args.model_card:
        card = model_card(
            cfg, class_names, metrics, file=Path(args.output).name, license=args.license,
            with_masks=bool(getattr(getattr(model, "roi_heads", None), "mask_on", False)), half=args.half,
        )  # fmt: skip
        write_card(folder, card)
        print(f"Wrote {folder / 'README.md'}: replace OWNER/REPO by your name and the repository's")
    print(f"Wrote {args.output}: {size / 2**20:.1f} MiB")

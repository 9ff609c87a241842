"""Serve a web page: drop an image, type names, and see what a model finds and where.

tools/web_demo.py                                                    # the zoo's model of photographs
tools/web_demo.py --zoo Shapes/denseclip_semantic_fpn_tiny.yaml --port 8000
tools/web_demo.py --config-file F MODEL.WEIGHTS W                    # a config, exported weights, hf://...
tools/web_demo.py --clip openclip://ViT-B-16-quickgelu/openai        # a CLIP alone, without training
tools/web_demo.py --host 0.0.0.0 --queue 20                          # for other machines

The page also offers the other models of the zoo. It needs no network. Ctrl-C ends it.
"""

import argparse
from contextlib import suppress
from threading import Event

from detectron2.utils.logger import setup_logger

from .. import model_zoo
from ..config import prepare_run
from ..web_demo.session import Limits, Models
from .parser import add_clip, add_opts, command_parser, config_and_opts


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--config-file", metavar="FILE", help="a config, or exported weights")
    model.add_argument(
        "--zoo", metavar="NAME", default="WithoutTraining/photographs.yaml",
        help="a config with trained weights in the zoo (%(default)s)",
    )  # fmt: skip
    add_clip(model)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=7860, help="%(default)s; 0 selects the first free port from there"
    )
    limits = Limits()
    for name, what in (
        ("megabytes", "largest file"),
        ("megapixels", "largest image, checked before decoding"),
        ("side", "longer side in pixels; larger images are resized"),
        ("queue", "waiting requests; the model serves one at a time"),
    ):
        option, default = "--queue" if name == "queue" else f"--max-{name}", getattr(limits, name)
        text = f"{what} (%(default)s)"
        parser.add_argument(option, dest=name, type=int, default=default, metavar="N", help=text)
    add_opts(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    with suppress(KeyboardInterrupt):
        serve(args)


def serve(args: argparse.Namespace) -> None:
    setup_logger()
    limits = Limits(args.megabytes, args.megapixels, args.side, queue=args.queue)
    name = args.clip or args.config_file or args.zoo
    args.config_file = args.config_file or f"denseclip://{args.zoo}"
    configs = {name: prepare_run(*config_and_opts(args)).cfg}
    for other in model_zoo.trained_configs():
        configs.setdefault(other, model_zoo.get_config(other, trained=True))
    # Gradio is an extra, which --help does not need.
    from ..web_demo.app import Page, serve_page

    with serve_page(Page(Models(configs), limits), host=args.host, port=args.port) as address:
        print(f"The page is at {address} until Ctrl-C.", flush=True)
        Event().wait()

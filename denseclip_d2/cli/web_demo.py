"""Serve a web page on this machine that shows a model's predictions for an image, and heat maps of words.

tools/web_demo.py                                                    # the zoo's tiny model
tools/web_demo.py --zoo Shapes/denseclip_semantic_fpn_tiny.yaml --port 8000
tools/web_demo.py --config-file F MODEL.WEIGHTS W                    # a config, exported weights, hf://...
tools/web_demo.py --host 0.0.0.0 --queue 20                          # for other machines too

The page also offers the other models of the zoo. It downloads nothing. Ctrl-C stops it.
"""

import argparse
from contextlib import suppress
from threading import Event

from detectron2.utils.logger import setup_logger

from .. import model_zoo
from ..config import load_config
from ..engine import keep_memory
from ..web_demo.session import Limits, Models
from .parser import add_opts, command_parser


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--config-file", metavar="FILE", help="a config, or exported weights")
    model.add_argument(
        "--zoo", metavar="NAME", default="Shapes/denseclip_retinanet_tiny.yaml",
        help="config name of a trained zoo model (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="127.0.0.1", help="this machine's address for the page (%(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="%(default)s; 0 takes the first free port from 7860 on"
    )
    limits = Limits()
    for name, what in (
        ("megabytes", "largest file"),
        ("megapixels", "largest image, before it is decoded"),
        ("side", "pixels of the longer side; larger images are made smaller"),
        ("queue", "waiting requests; the model runs one at a time"),
    ):
        option = "--queue" if name == "queue" else f"--max-{name}"
        help_ = f"{what} (%(default)s)"
        parser.add_argument(
            option, dest=name, type=int, default=getattr(limits, name), metavar="N", help=help_
        )
    add_opts(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    with suppress(KeyboardInterrupt):
        serve(args)


def serve(args: argparse.Namespace) -> None:
    setup_logger()
    limits = Limits(args.megabytes, args.megapixels, args.side, queue=args.queue)
    name = args.config_file or args.zoo
    configs = {name: load_config(args.config_file or f"denseclip://{name}", args.opts)}
    for other in model_zoo.trained_configs():
        configs.setdefault(other, model_zoo.get_config(other, trained=True))
    keep_memory(configs[name])
    # Gradio is an extra. --help works without it.
    from ..web_demo.app import Page, served

    with served(Page(Models(configs), limits), host=args.host, port=args.port) as address:
        print(f"The page is at {address} until Ctrl-C.", flush=True)
        Event().wait()

"""Serve a web page on this machine: drop an image, type names, see what a model finds and where.

tools/web_demo.py                                                    # the zoo's tiny model
tools/web_demo.py --zoo Shapes/denseclip_semantic_fpn_tiny.yaml --port 8000
tools/web_demo.py --config-file F MODEL.WEIGHTS W                    # a config, exported weights, hf://...
tools/web_demo.py --host 0.0.0.0 --queue 20                          # for all who reach this machine

The other models of the zoo can be chosen on the page. It asks nothing of the network, and ends with Ctrl-C.
"""

import argparse
from contextlib import suppress
from threading import Event

from detectron2.utils.logger import setup_logger

from .. import model_zoo
from ..config import prepare_run
from ..engine import keep_memory
from ..web_demo.session import Limits, Models
from .parser import add_opts, command_parser


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--config-file", metavar="FILE", help="a config, or weights exported with theirs")
    model.add_argument(
        "--zoo", metavar="NAME", default="Shapes/denseclip_retinanet_tiny.yaml",
        help="a trained model of the zoo, by its config's name (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to be reached by (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=7860, help="%(default)s; 0 takes the first free one from there on"
    )
    limits = Limits()
    for name, what in (
        ("megabytes", "of a file"),
        ("megapixels", "of a picture, before it is decoded"),
        ("side", "pixels of the longer side, above which a picture is made smaller"),
        ("queue", "requests that wait; the model takes one at a time"),
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
    configs = {name: prepare_run(args.config_file or f"denseclip://{name}", args.opts).cfg}
    for other in model_zoo.trained_configs():
        configs.setdefault(other, model_zoo.get_config(other, trained=True))
    keep_memory(configs[name])
    # Gradio is an extra, which --help goes without.
    from ..web_demo.app import Page, served

    with served(Page(Models(configs), limits), host=args.host, port=args.port) as address:
        print(f"The page is at {address} until Ctrl-C.", flush=True)
        Event().wait()

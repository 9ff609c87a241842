"""Options and checks that several commands share."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..engine.setup import check_writable
from ..model_zoo import CLIP_CONFIG, clip_opts, get_config_file


def command_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help starts with the docstring of a command."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config(
    parser: argparse.ArgumentParser, *, opts: bool = True, clip: bool = False, **config_file: Any
) -> None:
    """Add ``--config-file``, required without a default, and ``KEY VALUE`` pairs that override it.

    Args:
        clip: add ``--clip`` in its place: :func:`config_and_opts` reads both.
    """
    required = "default" not in config_file
    if clip:
        model = parser.add_mutually_exclusive_group(required=required)
        model.add_argument("--config-file", metavar="FILE", **config_file)
        add_clip(model)
    else:
        parser.add_argument("--config-file", required=required, metavar="FILE", **config_file)
    if opts:
        add_opts(parser)


def add_clip(parser: Any) -> None:
    """Add ``--clip`` to a parser or a group."""
    parser.add_argument(
        "--clip", metavar="W",
        help="a CLIP alone, untrained: openclip://ARCHITECTURE/TAG, a file of weights, or local-dir:FOLDER",
    )  # fmt: skip


def config_and_opts(args: argparse.Namespace) -> tuple[str, list]:
    """Return the config file, and the ``KEY VALUE`` pairs over it, of ``--config-file`` or ``--clip``.

    Raises:
        ValueError, FileNotFoundError: see :func:`clip_opts`.
    """
    if args.clip:
        return get_config_file(CLIP_CONFIG), clip_opts(args.clip, args.opts)
    return args.config_file, args.opts


def add_opts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys, last of all"
    )


def parse_args(parser: argparse.ArgumentParser, options: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the values of options, and in ``opts`` all KEY VALUE pairs.

    Pairs may follow an option of any number of values. argparse alone would take them for values.
    """
    options = sys.argv[1:] if options is None else options
    own: list[str] = []
    pairs: list[str] = []
    in_pairs = False
    for before, word in pairwise(["", *options]):
        if word.startswith("--"):
            in_pairs = False
        elif not before.startswith("--"):  # the first value of an option is no key
            in_pairs = in_pairs or _is_key(word)
        (pairs if in_pairs else own).append(word)
    args = parser.parse_args(own)
    if not hasattr(args, "opts"):
        return parser.parse_args(options)
    args.opts = [*args.opts, *pairs]
    return args


def _is_key(value: str) -> bool:
    """Return whether a value is, or looks like, a config key, such as SOLVER.MAX_ITER or SEED."""
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*", value):
        return False  # at once, for there may be thousands of files
    if "." in value:
        return not Path(value).exists()
    cfg = get_cfg()
    return value in cfg and not isinstance(cfg[value], CfgNode)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def check_folder(file: Path | None, option: str) -> None:
    """Make the folder of the file of an option, if the option is given.

    Raises:
        OSError: files cannot be written in the folder.
    """
    if file:
        check_writable(str(file.parent), f"the folder of {option}")


def write_json(file: Path | None, content: Any) -> None:
    """Write content to the file of an option, if the option is given."""
    if file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

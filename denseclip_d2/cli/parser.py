"""Options and checks that several commands share."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..engine.setup import check_writable


def command_parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help starts with the docstring of a command."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config(parser: argparse.ArgumentParser, *, opts: bool = True, **config_file: Any) -> None:
    """Add ``--config-file``, required without a default, and ``KEY VALUE`` pairs that override it."""
    required = "default" not in config_file
    parser.add_argument("--config-file", required=required, metavar="FILE", **config_file)
    if opts:
        add_opts(parser)


def add_opts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys, last of all"
    )


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

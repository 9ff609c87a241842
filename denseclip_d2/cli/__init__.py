"""The commands of ``denseclip``, one module each; in a clone, ``tools/`` has a script for each."""

import argparse
import ast
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

from ..engine.errors import one_line_errors
from ..utils.memory import keep_freed_memory
from ..version import __version__
from .parser import command_parser, parse_args

COMMANDS = {
    "train": "train_net",
    "train-lazy": "lazyconfig_train_net",
    "demo": "demo",
    "web": "web_demo",
    "export": "export_model",
    "convert": "convert_checkpoint",
    "report": "report",
    "doctor": "doctor",
    "browse": "browse_dataset",
    "analyze": "analyze_model",
    "architectures": "list_architectures",
    "pointing-game": "pointing_game",
    "ablate": "ablate",
    "benchmark": "benchmark",
    "pretrain": "pretrain_clip",
    "make-clip": "make_clip",
}
"""Module by command. A module has ``build_parser()`` and ``main(args)``, which may return an exit status."""

_FOLDER = Path(__file__).parent


def main(module: str = "") -> None:
    """Run the command of a script's ``module``, or ``denseclip COMMAND ...`` without a module.

    The program ends with the command's exit status if that is not 0.
    """
    options, command = sys.argv[1:], ""
    if not module:
        args = _parser().parse_args()
        command, options = args.command, args.options
    code = command_module(module or COMMANDS[command])
    parser: argparse.ArgumentParser = code.build_parser()
    if command:
        parser.prog = f"denseclip {command}"
        parser.description, parser.epilog = map(_as_installed, (parser.description, parser.epilog))
    args = parse_args(parser, options)
    if getattr(args, "config_file", None):
        args.config_file = config_path(args.config_file)
    try:
        with one_line_errors():
            keep_freed_memory()
            status = code.main(args)
    except argparse.ArgumentError as error:  # options that do not fit together
        parser.error(str(error))
    if status:
        sys.exit(status)


def command_module(name: str) -> ModuleType:
    return importlib.import_module(f".{name}", __name__)


def config_path(name: str) -> str:
    """Return the package's file for a name such as configs/A/b.yaml that does not exist here."""
    packaged = _FOLDER.parent / "model_zoo" / name
    found = name.startswith("configs/") and packaged.is_file() and not Path(name).exists()
    return str(packaged) if found else name


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {command:15} {_summary(module)}" for command, module in COMMANDS.items())
    parser = command_parser(f"Commands (see `denseclip COMMAND --help`):\n\n{commands}")
    parser.prog = "denseclip"
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="its options")
    return parser


def _summary(module: str) -> str:
    """Return the first line of a module's docstring without an import."""
    source = (_FOLDER / f"{module}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def _as_installed(text: str | None) -> str | None:
    """Return a help text with ``denseclip COMMAND`` in place of the scripts of a clone."""
    for command, module in COMMANDS.items():
        text = re.sub(rf"(torchrun .*)tools/{module}\.py", rf"\1-m {__name__} {command}", text or "")
        text = text.replace(f"tools/{module}.py", f"denseclip {command}")
    return text

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import load_config
from ..config.own import keep_schedule
from ..utils.text import read_text
from .errors import keep_tracebacks_in_the_log


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of ``tools/train_net.py``'s command line, frozen; makes output directory and logging ready.

    Raises:
        OSError: ``OUTPUT_DIR`` cannot be written.
    """
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.ALLOW_PARTIAL_WEIGHTS |= args.allow_partial
    if args.resume:
        keep_schedule(cfg, args.opts[::2])
    check_writable(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    cfg.freeze()
    logged = argparse.Namespace(**vars(args))
    logged.config_file = ""  # default_setup would log the file's text, in the locale's encoding
    default_setup(cfg, logged)
    # default_setup gives Detectron2's and fvcore's loggers a console and OUTPUT_DIR/log.txt, and no other's.
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="denseclip_d2")
    keep_tracebacks_in_the_log()
    logger.info("Command: %s", shlex.join(sys.argv))
    if not (args.config_file.endswith(".safetensors") or "://" in args.config_file):
        logger.info("Contents of %s:\n%s", args.config_file, read_text(args.config_file))
    return cfg


def check_writable(directory: str, key: str) -> None:
    """Make the directory that ``key`` names, and see that files can be written there.

    Raises:
        OSError: they cannot.
    """
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise OSError(
            f"{key} = {directory!r} cannot be written: {error.strerror}. Set {key} to another."
        ) from error


@contextmanager
def output_folder(directory: str, key: str) -> Iterator[None]:
    """Make the directory that ``key`` names for a block; those made are removed if nothing is written there.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(directory)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    check_writable(directory, key)
    try:
        yield
    finally:
        with suppress(OSError):  # a directory that is not empty stays
            for folder in made:
                folder.rmdir()

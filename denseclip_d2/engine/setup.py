import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import PreparedRun, prepare_run
from ..utils.text import read_text
from .errors import keep_tracebacks_in_the_log


def setup(args: argparse.Namespace) -> PreparedRun:
    """Return the frozen config of ``tools/train_net.py``'s command line, and the config to compare it with.

    Make the output directory, and set up logging.

    Raises:
        ValueError, FileNotFoundError: see :func:`prepare_run`.
        OSError: ``OUTPUT_DIR`` cannot be written.
    """
    prepared = prepare_run(args.config_file, args.opts, resume=args.resume)
    cfg = prepared.cfg
    cfg.MODEL.ALLOW_PARTIAL_WEIGHTS |= args.allow_partial
    check_writable(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    cfg.freeze()
    logged = argparse.Namespace(**vars(args))
    logged.config_file = ""  # default_setup would log the file's text in the locale's encoding
    default_setup(cfg, logged)
    # default_setup gives a console and OUTPUT_DIR/log.txt to the loggers of Detectron2 and fvcore alone.
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="denseclip_d2")
    keep_tracebacks_in_the_log()
    logger.info("Command: %s", shlex.join(sys.argv))
    if not (args.config_file.endswith(".safetensors") or "://" in args.config_file):
        logger.info("Contents of %s:\n%s", args.config_file, read_text(args.config_file))
    return prepared


def check_writable(directory: str, key: str) -> None:
    """Make the directory that ``key`` names, and check that files can be written there.

    Raises:
        OSError: they cannot.
    """
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise OSError(
            f"{key} = {directory!r} cannot be written: {error.strerror}. Set {key} to another directory."
        ) from error


@contextmanager
def output_folder(directory: str, key: str) -> Iterator[None]:
    """Make the directory that ``key`` names; afterwards remove the new directories that are empty.

    Raises:
        OSError: the directory cannot be written.
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

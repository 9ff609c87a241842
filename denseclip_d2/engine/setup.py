import argparse
import logging
import tempfile
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint.exported import merge_header_config
from ..config import add_denseclip_config
from ..data.semantic import register_semantic_folders


def load_config(config_file: str, opts: list[str]) -> CfgNode:
    """Detectron2's and this project's defaults, a config file, and ``KEY VALUE`` pairs over it.

    For exported weights in place of a config file, their header is the config, and they are its weights.
    Where there is no GPU, ``MODEL.DEVICE`` becomes "cpu". The datasets in ``DATASETS.SEMANTIC_FOLDERS`` are
    registered.

    Raises:
        ValueError, FileNotFoundError: one of these cannot be; a file of weights holds no config.
    """
    cfg = get_cfg()
    add_denseclip_config(cfg)
    try:
        if config_file.endswith(".safetensors"):
            merge_header_config(cfg, config_file)
        else:
            cfg.merge_from_file(config_file)
        cfg.merge_from_list(opts)
    except (AssertionError, KeyError) as error:  # how yacs refuses a key, or a file
        raise ValueError(error.args[0] if error.args else str(error)) from error
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        logging.getLogger(__name__).warning("No GPU: MODEL.DEVICE is set to 'cpu'.")
        cfg.MODEL.DEVICE = "cpu"
    register_semantic_folders(cfg)
    return cfg


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of ``tools/train_net.py``'s command line, frozen; makes output directory and logging ready.

    Raises:
        OSError: ``OUTPUT_DIR`` cannot be written.
    """
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.ALLOW_PARTIAL_WEIGHTS |= args.allow_partial
    check_writable(cfg.OUTPUT_DIR, "OUTPUT_DIR")
    cfg.freeze()
    logged = argparse.Namespace(**vars(args))
    if args.config_file.endswith(".safetensors"):
        logged.config_file = ""  # default_setup would log the file's text
    default_setup(cfg, logged)
    # default_setup gives Detectron2's and fvcore's loggers a console and OUTPUT_DIR/log.txt, and no other's.
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="denseclip_d2")
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

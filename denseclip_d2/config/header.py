"""The config in the header of exported weights."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from ..utils.safetensors_file import read_header
from ..version import __version__
from .projects import default_config


def header_config(path: str) -> dict:
    """Return the config in the header of exported weights, as YAML has it.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, has no such header, or its config is invalid.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path!r}: there is no such file.")
    header = read_header(path)
    if not header:
        raise ValueError(
            f"{path!r} says nothing about its config: tools/convert_checkpoint.py did not write it. "
            "Give a config file, and the weights as MODEL.WEIGHTS."
        )
    try:
        return dict(CfgNode(yaml.safe_load(header["config"])))
    except Exception as error:  # yaml and yacs raise anything for other content
        raise _of_another_version(path, header, error) from error


def merge_header_config(cfg: CfgNode, path: str, content: dict) -> None:
    """Merge the config in the header of exported weights into ``cfg``, and set ``MODEL.WEIGHTS`` to the file.

    Args:
        content: from :func:`header_config`.

    Raises:
        ValueError: this version cannot read the config.
    """
    local = _local(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode(content))
    except Exception as error:  # yacs raises anything for other content
        raise _of_another_version(path, read_header(path), error) from error
    cfg.merge_from_list([*local, "MODEL.WEIGHTS", path])


def _of_another_version(path: str, header: dict[str, str], error: Exception) -> ValueError:
    return ValueError(
        f"{path!r} was written by denseclip_d2 {header['denseclip_d2_version']}, and its config "
        f"cannot be read by this version, {__version__}: {error}."
    )


def portable(cfg: CfgNode, class_names: Sequence[str]) -> CfgNode:
    """Return a config as a header has it: with the class names, without the settings of this machine."""
    cfg = cfg.clone()
    cfg.defrost()
    if "://" not in cfg.MODEL.DENSECLIP.TEXT_WEIGHTS:  # a file of this machine
        cfg.MODEL.DENSECLIP.TEXT_WEIGHTS = ""
    cfg.merge_from_list(
        [*_local(default_config()), "MODEL.WEIGHTS", "", "MODEL.DENSECLIP.VISUAL.WEIGHTS", ""]
    )
    cfg.MODEL.DENSECLIP.CLASS_NAMES = tuple(class_names)
    return cfg


def _local(cfg: CfgNode) -> list:
    """Return the keys, with their values, that belong to a machine or a person and not to the model."""
    return [
        "MODEL.DEVICE", cfg.MODEL.DEVICE,
        "MODEL.ALLOW_PARTIAL_WEIGHTS", cfg.MODEL.ALLOW_PARTIAL_WEIGHTS,
        "DATASETS.SEMANTIC_FOLDERS", cfg.DATASETS.SEMANTIC_FOLDERS,
        "DATASETS.CUSTOM.TRAIN", cfg.DATASETS.CUSTOM.TRAIN,
        "DATASETS.CUSTOM.VAL", cfg.DATASETS.CUSTOM.VAL,
        "DATASETS.CUSTOM.SEMANTIC", cfg.DATASETS.CUSTOM.SEMANTIC,
        "DATASETS.CUSTOM.CLASS_NAMES", cfg.DATASETS.CUSTOM.CLASS_NAMES,
        "MODEL.DENSECLIP.PROMPT.TOKENIZER", cfg.MODEL.DENSECLIP.PROMPT.TOKENIZER,
        "OUTPUT_DIR", cfg.OUTPUT_DIR,
    ]  # fmt: skip

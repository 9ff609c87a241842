"""The header of exported weights, which says what model they are of: its config, among other things."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode

from ..utils.safetensors_file import read_header
from ..version import __version__
from .projects import default_config


def header_config(path: str) -> dict:
    """The config in the header of exported weights, as YAML has it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or has no such header, or its config is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path!r}: there is no such file.")
    header = read_header(path)
    if not header:
        raise ValueError(
            f"{path!r} says nothing about its config: it was not written by tools/convert_checkpoint.py. "
            "Give a config file, and the weights as MODEL.WEIGHTS."
        )
    try:
        return dict(CfgNode(yaml.safe_load(header["config"])))
    except Exception as error:  # yaml and yacs raise anything of what was not written here
        raise _of_another_version(path, header, error) from error


def merge_header_config(cfg: CfgNode, path: str, content: dict) -> None:
    """Merge the config in the header of exported weights into ``cfg``, and set ``MODEL.WEIGHTS`` to the file.

    Args:
        content: of :func:`header_config`.

    Raises:
        ValueError: its config is not one of this version's.
    """
    local = _local(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode(content))
    except Exception as error:  # yacs raises anything of what was not written here
        raise _of_another_version(path, read_header(path), error) from error
    cfg.merge_from_list([*local, "MODEL.WEIGHTS", path])


def _of_another_version(path: str, header: dict[str, str], error: Exception) -> ValueError:
    return ValueError(
        f"{path!r} was written by denseclip_d2 {header['denseclip_d2_version']}, and its config is not "
        f"one that this version, {__version__}, can take: {error}."
    )


def portable(cfg: CfgNode, class_names: Sequence[str]) -> CfgNode:
    """A config as a header has it: with the names of its classes, and nothing of this machine."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(
        [*_local(default_config()), "MODEL.WEIGHTS", "", "MODEL.DENSECLIP.VISUAL.WEIGHTS", ""]
    )
    cfg.MODEL.DENSECLIP.CLASS_NAMES = tuple(class_names)
    return cfg


def _local(cfg: CfgNode) -> list:
    """The keys, each with its value, that are a machine's or a person's and not the model's."""
    return [
        "MODEL.DEVICE", cfg.MODEL.DEVICE,
        "MODEL.ALLOW_PARTIAL_WEIGHTS", cfg.MODEL.ALLOW_PARTIAL_WEIGHTS,
        "DATASETS.SEMANTIC_FOLDERS", cfg.DATASETS.SEMANTIC_FOLDERS,
        "DATASETS.OWN.TRAIN", cfg.DATASETS.OWN.TRAIN,
        "DATASETS.OWN.VAL", cfg.DATASETS.OWN.VAL,
        "DATASETS.OWN.SEMANTIC", cfg.DATASETS.OWN.SEMANTIC,
        "DATASETS.OWN.CLASS_NAMES", cfg.DATASETS.OWN.CLASS_NAMES,
        "MODEL.DENSECLIP.TEXT_WEIGHTS", cfg.MODEL.DENSECLIP.TEXT_WEIGHTS,
        "OUTPUT_DIR", cfg.OUTPUT_DIR,
    ]  # fmt: skip

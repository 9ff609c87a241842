"""Exported weights: safetensors whose header says what model they are of."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..config import add_denseclip_config
from .readers import is_safetensors
from .report import first
from .settings import differing, settings_of
from .whole_files import written_whole


def export(
    model: nn.Module,
    cfg: CfgNode,
    class_names: Sequence[str],
    *,
    source: str,
    output: str,
    half: bool = False,
) -> None:
    """Write a model's weights as safetensors that need no config file; whole, or not at all.

    The header holds ``config`` (YAML, with the class names), ``class_names`` and ``settings`` (JSON),
    ``source_sha256``, ``denseclip_d2_version`` and, of a language-guided model, ``tau`` and ``prompt_mode``.

    Args:
        cfg: what ``model`` was built from.
        class_names: of the model's classes, in the order of their ids.
        source: the file that the weights came from.
        half: write float16 instead of float32, rounded.

    Raises:
        FileExistsError, ValueError: see :func:`check_output`; a weight is too large for float16.
    """
    check_output(output)
    header = {
        "format": "pt",
        "denseclip_d2_version": _version(),
        "config": _portable(cfg, class_names).dump(),
        "class_names": json.dumps(list(class_names)),
        "settings": json.dumps(settings_of(model)),
        "source_sha256": sha256(source),
        **_guidance(model),
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        tensors = {name: _halved(name, tensor) for name, tensor in tensors.items()}
    with written_whole(Path(output), "wb") as file:
        file.write(save(tensors, header))


def check_output(path: str) -> None:
    """See that weights can be exported to a path.

    Raises:
        FileExistsError: there is a file, which is not to be overwritten.
        ValueError: the name does not end in .safetensors.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"The output is written as safetensors: let {path!r} end in .safetensors.")
    if Path(path).exists():
        raise FileExistsError(f"{path!r} exists, and is not overwritten. Remove it, or choose another name.")


def read_header(path: str) -> dict[str, str]:
    """The header of exported weights; empty for any other file.

    Raises:
        ValueError: the file is damaged.
    """
    if not Path(path).is_file() or not is_safetensors(path):
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path!r} is damaged: {error}.") from error
    return header if "denseclip_d2_version" in header else {}


def merge_header_config(cfg: CfgNode, path: str) -> None:
    """Merge the config in the header of exported weights into ``cfg``, and set ``MODEL.WEIGHTS`` to the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or has no such header, or its config is not one of this version's.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path!r}: there is no such file.")
    header = read_header(path)
    if not header:
        raise ValueError(
            f"{path!r} says nothing about its config: it was not written by tools/convert_checkpoint.py. "
            "Give a config file, and the weights as MODEL.WEIGHTS."
        )
    local = _local(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(header["config"])))
    except Exception as error:  # yaml and yacs raise anything of what was not written here
        raise ValueError(
            f"{path!r} was written by denseclip_d2 {header['denseclip_d2_version']}, and its config is not "
            f"one that this version, {_version()}, can take: {error}."
        ) from error
    cfg.merge_from_list([*local, "MODEL.WEIGHTS", path])


def check_header(path: str, model: nn.Module) -> None:
    """See that exported weights were made for what ``model`` is, where tensors do not tell.

    Raises:
        ValueError: other class names or settings.
    """
    header = read_header(path)
    other = differing(json.loads(header.get("settings", "{}")), model)
    names = getattr(getattr(model.backbone, "language", None), "class_names", None)
    if header and names is not None and (theirs := json.loads(header["class_names"])) != list(names):
        differ = [f"{a!r} instead of {b!r}" for a, b in zip(theirs, names, strict=False) if a != b]
        other += f"; class names: {first(differ, 3)}"
    if other:
        raise ValueError(
            f"{path!r} was exported with {other.removeprefix('; ')}. Set these so, or give the file as "
            "--config-file: its header is its config."
        )


def sha256(path: str) -> str:
    """Of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _halved(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    halved = tensor.half()
    if not torch.isfinite(halved).all():
        raise ValueError(f"{name} has values up to {tensor.abs().max():.3g}, too large for float16.")
    return halved


def _guidance(model: nn.Module) -> dict[str, str]:
    backbone = model.backbone
    if not hasattr(backbone, "language"):
        return {}
    return {"tau": repr(backbone.tau), "prompt_mode": backbone.language.mode}


def _portable(cfg: CfgNode, class_names: Sequence[str]) -> CfgNode:
    defaults = get_cfg()
    add_denseclip_config(defaults)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([*_local(defaults), "MODEL.WEIGHTS", ""])
    cfg.MODEL.DENSECLIP.CLASS_NAMES = tuple(class_names)
    return cfg


def _local(cfg: CfgNode) -> list:
    """The keys, each with its value, that are a machine's or a person's and not the model's."""
    return [
        "MODEL.DEVICE", cfg.MODEL.DEVICE,
        "MODEL.ALLOW_PARTIAL_WEIGHTS", cfg.MODEL.ALLOW_PARTIAL_WEIGHTS,
        "DATASETS.SEMANTIC_FOLDERS", cfg.DATASETS.SEMANTIC_FOLDERS,
        "OUTPUT_DIR", cfg.OUTPUT_DIR,
    ]  # fmt: skip


def _version() -> str:
    from .. import __version__  # the package imports this module

    return __version__

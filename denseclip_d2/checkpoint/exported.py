"""Exported weights: safetensors whose header says what model they are of."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .readers import is_safetensors
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

    The header holds ``config`` (YAML, with the class names), ``class_names`` (JSON), ``source_sha256``,
    ``denseclip_d2_version`` and, of a language-guided model, ``tau``, ``prompt_mode`` and ``folded``.

    Args:
        cfg: what ``model`` was built from.
        class_names: of the model's classes, in the order of their ids.
        source: the file that the weights came from.
        half: write float16 instead of float32, rounded.

    Raises:
        FileExistsError, ValueError: see :func:`check_output`; a weight is too large for float16.
    """
    from .. import __version__  # the package imports this module

    check_output(output)
    header = {
        "format": "pt",
        "denseclip_d2_version": __version__,
        "config": _portable(cfg, class_names).dump(),
        "class_names": json.dumps(list(class_names)),
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
    """The header of exported weights; empty for any other file."""
    if not Path(path).is_file() or not is_safetensors(path):
        return {}
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
    return header if "denseclip_d2_version" in header else {}


def merge_header_config(cfg: CfgNode, path: str) -> None:
    """Merge the config in the header of exported weights into ``cfg``, and set ``MODEL.WEIGHTS`` to the file.

    Raises:
        ValueError: the file has no such header, or its config has keys that this version does not know.
    """
    header = read_header(path)
    if not header:
        raise ValueError(
            f"{path!r} says nothing about its config: it was not written by tools/convert_checkpoint.py. "
            "Give a config file, and the weights as MODEL.WEIGHTS."
        )
    try:
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(header["config"])))
    except KeyError as error:
        raise ValueError(
            f"{path!r} was written by denseclip_d2 {header['denseclip_d2_version']}, whose config has a key "
            f"this version does not know: {error}."
        ) from error
    cfg.MODEL.WEIGHTS = path


def check_header(path: str, model: nn.Module) -> None:
    """See that exported weights were made for what ``model`` is, where shapes of tensors do not tell.

    Raises:
        ValueError: other class names, temperature or prompt mode, or text folded in one of them alone.
    """
    header, found = read_header(path), _guidance(model)
    if not header or not found:
        return
    found["class_names"] = json.dumps(list(model.backbone.language.class_names))
    other = [key for key, value in found.items() if header.get(key) != value]
    if other:
        wanted = "; ".join(f"{key} {header.get(key)}, not {found[key]}" for key in other)
        raise ValueError(
            f"{path!r} was exported with {wanted}. Given as --config-file it is loaded with its own; "
            "--allow-partial takes it as it is."
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
    return {
        "tau": repr(backbone.tau),
        "prompt_mode": backbone.language.mode,
        "folded": repr(backbone.language.folded),
    }


def _portable(cfg: CfgNode, class_names: Sequence[str]) -> CfgNode:
    cfg, defaults = cfg.clone(), get_cfg()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = defaults.MODEL.DEVICE, defaults.OUTPUT_DIR
    cfg.MODEL.DENSECLIP.CLASS_NAMES = tuple(class_names)
    return cfg

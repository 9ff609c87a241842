"""Exported weights: safetensors whose header says what model they are of."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from safetensors.torch import save
from torch import Tensor, nn

from ..config.header import portable, read_header
from ..guidance import guidance_of
from ..utils.atomic import atomic_write
from ..version import __version__
from .report import first
from .settings import differing, settings_of


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

    The header holds what :func:`about` says, and ``settings`` (JSON).

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
        "settings": json.dumps(settings_of(model)),
        **about(model, cfg, class_names, source=source),
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        tensors = halved(tensors)
    with atomic_write(Path(output), "wb") as file:
        file.write(save(tensors, header))


def about(model: nn.Module, cfg: CfgNode, class_names: Sequence[str], *, source: str) -> dict[str, str]:
    """What a file says of the model in it.

    Args:
        model, cfg, class_names, source: as for :func:`export`.
    Returns: ``config`` (YAML, with the class names), ``class_names`` (JSON), ``source_sha256``,
        ``denseclip_d2_version`` and, of a language-guided model, ``tau`` and ``prompt_mode``.
    """
    return {
        "denseclip_d2_version": __version__,
        "config": portable(cfg, class_names).dump(),
        "class_names": json.dumps(list(class_names)),
        "source_sha256": sha256(source),
        **_guidance(model),
    }


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


def check_header(path: str, model: nn.Module, *, start: bool = False) -> None:
    """See that exported weights were made for what ``model`` is, where tensors do not tell.

    Args:
        start: training begins from them, so that they may be of other classes, or folded.

    Raises:
        ValueError: other class names or settings.
    """
    header = read_header(path)
    settings = json.loads(header.get("settings", "{}"))
    if start:
        settings.pop("MODEL.DENSECLIP.PROMPT.FOLDED", None)
    other = differing(settings, model)
    guided = guidance_of(model)
    names = list(guided.language.class_names) if guided else []
    if header and guided and not start and (theirs := json.loads(header["class_names"])) != names:
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


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by name, floating-point ones rounded to float16.

    Raises:
        ValueError: one is too large for float16.
    """
    rounded = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    for name, tensor in rounded.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{name} has values up to {tensors[name].abs().max():.3g}, too large for float16."
            )
    return rounded


def _guidance(model: nn.Module) -> dict[str, str]:
    guided = guidance_of(model)
    return {"tau": repr(guided.tau), "prompt_mode": guided.language.mode} if guided else {}

"""Writing weights as safetensors that need no config file: the header describes the model."""

import json
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from ..checkpoint.finetune import TEXT_ENCODER
from ..config.header import portable
from ..guidance import guidance_of
from ..guidance.model_settings import settings_of
from ..utils.safetensors_file import sha256, write_safetensors
from ..version import __version__


def export(
    model: nn.Module,
    cfg: CfgNode,
    class_names: Sequence[str],
    *,
    source: str,
    output: str,
    half: bool = False,
    omit_text_encoder: bool = False,
) -> None:
    """Write a model's weights atomically as safetensors that need no config file.

    The header holds what :func:`about` returns, and ``settings`` (JSON).

    Args:
        cfg: the config that ``model`` was built from.
        class_names: of the model's classes, in the order of their ids.
        source: the file that the weights came from.
        half: write float16 instead of float32, rounded.
        omit_text_encoder: leave the text encoder to the CLIP of the config's ``TEXT_WEIGHTS``.

    Raises:
        FileExistsError, ValueError: see :func:`check_output`; a value is too large for float16; the text
            encoder is omitted, and ``TEXT_WEIGHTS`` is no address.
    """
    check_output(output)
    state = model.state_dict()
    if omit_text_encoder:
        if "://" not in cfg.MODEL.DENSECLIP.TEXT_WEIGHTS:
            raise ValueError(
                "Weights without text encoder need MODEL.DENSECLIP.TEXT_WEIGHTS, the address of the CLIP "
                "that has the text encoder, such as openclip://RN50-quickgelu/openai."
            )
        state = {name: tensor for name, tensor in state.items() if not name.startswith(TEXT_ENCODER)}
    header = {
        "format": "pt",
        "settings": json.dumps(settings_of(model).by_key()),
        **about(model, cfg, class_names, source=source),
    }
    write_safetensors(Path(output), state, header, half=half)


def about(model: nn.Module, cfg: CfgNode, class_names: Sequence[str], *, source: str) -> dict[str, str]:
    """Return what a file says of the model in it.

    Args:
        model, cfg, class_names, source: as for :func:`export`.
    Returns: ``config`` (YAML, with the class names), ``class_names`` (JSON), ``source_sha256``,
        ``denseclip_d2_version``; for a language-guided model also ``tau`` and ``prompt_mode``.
    """
    guided = guidance_of(model)
    return {
        "denseclip_d2_version": __version__,
        "config": portable(cfg, class_names).dump(),
        "class_names": json.dumps(list(class_names)),
        "source_sha256": sha256(source),
        **({"tau": repr(guided.tau), "prompt_mode": guided.language.mode} if guided else {}),
    }


def check_output(path: str) -> None:
    """Check that weights can be exported to a path.

    Raises:
        FileExistsError: the file exists; it is not overwritten.
        ValueError: the name does not end in .safetensors.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"The output {path!r} must end in .safetensors.")
    if Path(path).exists():
        raise FileExistsError(f"{path!r} exists and is not overwritten. Remove it, or choose another name.")

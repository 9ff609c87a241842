"""CLIP architectures by name: open_clip's, and the small ones in this folder."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import open_clip
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.pretrained import get_pretrained_cfg

open_clip.add_model_config(Path(__file__).parent)

OPENCLIP = "openclip://"
"""How a path to open_clip's weights begins: ``openclip://<architecture>/<tag>``."""


@dataclass(frozen=True)
class CLIPArchitecture:
    """What an open_clip model config says: the joint embedding's width C, and the two encoders."""

    name: str
    embed_dim: int
    quick_gelu: bool
    vision: CLIPVisionCfg
    text: CLIPTextCfg


def get_clip_architecture(name: str, key: str = "MODEL.DENSECLIP.CLIP_MODEL") -> CLIPArchitecture:
    """Look an architecture up by open_clip's name. More can be added by ``open_clip.add_model_config``.

    Args:
        key: what errors call the name.

    Raises:
        ValueError: open_clip has no such architecture, or contexts cannot be put into its text encoder.
    """
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=4, cutoff=0.4)
        raise ValueError(
            f"{key} = {name!r} is not an architecture open_clip knows. "
            f"Near it: {', '.join(near) or 'none'}. `open_clip.list_models()` has all."
        )
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        raise ValueError(
            f"{key} = {name!r} has a text encoder of Hugging Face's ({text['hf_model_name']}), into which "
            "contexts cannot be put. Choose one such as 'RN50-quickgelu'."
        )
    if text.get("embed_cls"):
        raise ValueError(
            f"{key} = {name!r} is a CoCa, whose text encoder appends a class token of its own behind the "
            "padding. Choose a CLIP such as 'RN50-quickgelu'."
        )
    return CLIPArchitecture(
        name=name,
        embed_dim=config["embed_dim"],
        quick_gelu=config.get("quick_gelu", False),
        vision=CLIPVisionCfg(**config["vision_cfg"]),
        text=CLIPTextCfg(**text),
    )


def pixels_of(name: str, tag: str = "") -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels, RGB of 0 to 255, that a CLIP was trained on.

    Args:
        name, tag: open_clip's; without a tag, of the first weights that it lists for the architecture. CLIP's
            own where it has none.
    """
    tag = tag or next(iter(open_clip.list_pretrained_tags_by_model(name)), "")
    entry = get_pretrained_cfg(name, tag) or {}
    mean = entry.get("mean") or OPENAI_DATASET_MEAN
    std = entry.get("std") or OPENAI_DATASET_STD
    return [round(255 * x, 8) for x in mean], [round(255 * x, 8) for x in std]

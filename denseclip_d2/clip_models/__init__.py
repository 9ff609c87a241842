"""CLIP architectures by name: open_clip's, and the small ones in this folder."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

open_clip.add_model_config(Path(__file__).parent)


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
        ValueError: open_clip has no such architecture, or its text encoder is not CLIP's own.
    """
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=4, cutoff=0.4)
        raise ValueError(
            f"{key} = {name!r} is not an architecture open_clip knows. "
            f"Near it: {', '.join(near) or 'none'}. `open_clip.list_models()` has all."
        )
    text = config["text_cfg"]
    if text.get("hf_model_name") or text.get("hf_tokenizer_name") or text.get("no_causal_mask"):
        raise ValueError(
            f"{key} = {name!r} has a text encoder other than CLIP's causal transformer, "
            "into which contexts cannot be put. Choose one such as 'RN50-quickgelu'."
        )
    return CLIPArchitecture(
        name=name,
        embed_dim=config["embed_dim"],
        quick_gelu=config.get("quick_gelu", False),
        vision=CLIPVisionCfg(**config["vision_cfg"]),
        text=CLIPTextCfg(**text),
    )

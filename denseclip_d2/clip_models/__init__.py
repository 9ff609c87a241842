"""CLIP architectures by name: open_clip's, and the small ones in this folder."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

import open_clip
from open_clip.constants import (
    HF_SAFE_WEIGHTS_NAME,
    HF_WEIGHTS_NAME,
    OPENAI_DATASET_MEAN,
    OPENAI_DATASET_STD,
)
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.pretrained import get_pretrained_cfg

open_clip.add_model_config(Path(__file__).parent)

OPENCLIP = "openclip://"
"""The prefix of paths to open_clip's weights: ``openclip://<architecture>/<tag>``."""

LOCAL = "local-dir:"
"""The prefix of folders with a CLIP in open_clip's form, in place of an architecture's name."""


@dataclass(frozen=True)
class CLIPArchitecture:
    """An open_clip model config: the width C of the joint embedding, and the two encoders."""

    name: str
    embed_dim: int
    quick_gelu: bool
    vision: CLIPVisionCfg
    text: CLIPTextCfg


def get_clip_architecture(name: str, key: str = "MODEL.DENSECLIP.CLIP_MODEL") -> CLIPArchitecture:
    """Return an architecture by open_clip's name. ``open_clip.add_model_config`` adds more architectures.

    Args:
        name: or ``local-dir:`` and a folder with ``open_clip_config.json``.
        key: the config key or flag that errors name.

    Raises:
        ValueError: open_clip has no such architecture, or its text encoder cannot read contexts.
        FileNotFoundError: the folder has no such file.
    """
    config = _config_of(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=4, cutoff=0.4)
        raise ValueError(
            f"{key} = {name!r} is not an architecture that open_clip knows. "
            f"Near it: {', '.join(near) or 'none'}. `open_clip.list_models()` has all."
        )
    text = config["text_cfg"]
    if text.get("embed_cls"):
        raise ValueError(
            f"{key} = {name!r} is a CoCa, whose text encoder appends its own class token after the "
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
    """Return the mean and standard deviation of the pixels (RGB, 0 to 255) that a CLIP was trained on.

    Args:
        name: of an architecture of open_clip. If open_clip has no weights of the architecture: the values of
            its config's ``preprocess_cfg``, or CLIP's.
        tag: of open_clip's weights; empty: the first that it lists for the architecture.
    """
    tag = tag or next(iter(open_clip.list_pretrained_tags_by_model(name)), "")
    entry = get_pretrained_cfg(name, tag) or (_config_of(name) or {}).get("preprocess_cfg", {})
    mean = entry.get("mean") or OPENAI_DATASET_MEAN
    std = entry.get("std") or OPENAI_DATASET_STD
    return [round(255 * x, 8) for x in mean], [round(255 * x, 8) for x in std]


def local_weights(name: str) -> str:
    """Return the file of weights in a folder of open_clip.

    Args:
        name: ``local-dir:`` and the folder.

    Raises:
        FileNotFoundError: the folder has no file of open_clip's names.
    """
    files = [Path(name.removeprefix(LOCAL), file) for file in (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{name!r}: the folder has neither {files[0].name} nor {files[1].name}.")
    return str(found)


def _config_of(name: str) -> dict | None:
    if str(name).startswith(LOCAL):  # a config may have None
        file = Path(name.removeprefix(LOCAL)) / "open_clip_config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        return {**content["model_cfg"], "preprocess_cfg": content.get("preprocess_cfg", {})}
    return open_clip.get_model_config(name) if name in open_clip.list_models() else None

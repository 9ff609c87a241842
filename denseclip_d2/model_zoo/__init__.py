"""Configs and trained models by name, with the functions of ``detectron2.model_zoo``."""

from .clip import CONFIG as CLIP_CONFIG
from .clip import clip_opts, get_clip_config
from .hub import resolve_hub_path
from .zoo import get, get_checkpoint_url, get_config, get_config_file, trained_configs

__all__ = [
    "CLIP_CONFIG",
    "clip_opts",
    "get",
    "get_checkpoint_url",
    "get_clip_config",
    "get_config",
    "get_config_file",
    "resolve_hub_path",
    "trained_configs",
]

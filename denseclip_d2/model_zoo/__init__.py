"""Configs and trained models by name, with the functions of ``detectron2.model_zoo``."""

from .hub import resolve_hub_path
from .zoo import get, get_checkpoint_url, get_config, get_config_file, trained_configs

__all__ = [
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "resolve_hub_path",
    "trained_configs",
]

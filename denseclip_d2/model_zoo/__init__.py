"""Configs and trained models by name, as ``detectron2.model_zoo`` has them."""

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

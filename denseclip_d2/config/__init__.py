"""Every key of this project with its default and what it may be, and the loading of configs."""

from .checks import TIMM, check_config, check_context_init, check_timm_model
from .defaults import add_denseclip_config
from .loading import load_config
from .pixels import set_pixels

__all__ = [
    "TIMM",
    "add_denseclip_config",
    "check_config",
    "check_context_init",
    "check_timm_model",
    "load_config",
    "set_pixels",
]

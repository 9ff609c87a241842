"""Every key of this project with its default, and the loading of configs."""

from .defaults import add_denseclip_config
from .loading import load_config

__all__ = ["add_denseclip_config", "load_config"]

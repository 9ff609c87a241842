"""Every key of this project with its default and what it may be, and the loading of configs."""

from .checks import check_config
from .defaults import add_denseclip_config
from .loading import PreparedRun, load_config, prepare_run
from .pixel_stats import set_pixels

__all__ = [
    "PreparedRun",
    "add_denseclip_config",
    "check_config",
    "load_config",
    "prepare_run",
    "set_pixels",
]

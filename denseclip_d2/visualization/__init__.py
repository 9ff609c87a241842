from .gallery import Outcome, draw_sources
from .panels import Panel, grid, image_panels
from .sources import Source, camera, find_sources, of_dataset

__all__ = [
    "Outcome",
    "Panel",
    "Source",
    "camera",
    "draw_sources",
    "find_sources",
    "grid",
    "image_panels",
    "of_dataset",
]

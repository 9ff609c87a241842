from .panels import Panel, grid, image_panels

__all__ = ["Panel", "grid", "image_panels"]

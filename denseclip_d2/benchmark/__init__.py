from .measure import Row, format_table
from .sections import SECTIONS, Settings

__all__ = ["SECTIONS", "Row", "Settings", "format_table"]

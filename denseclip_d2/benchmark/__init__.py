from .measure import Row, format_table
from .sections import CONTENDERS, SECTIONS, Settings

__all__ = ["CONTENDERS", "SECTIONS", "Row", "Settings", "format_table"]

from .measure import Row, format_table
from .sections import GROWING, SECTIONS
from .settings import CONTENDERS, Settings

__all__ = ["CONTENDERS", "GROWING", "SECTIONS", "Row", "Settings", "format_table"]

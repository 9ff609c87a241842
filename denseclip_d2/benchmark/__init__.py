from .measure import Row, format_table
from .sections import SECTIONS
from .settings import CONTENDERS, Settings

__all__ = ["CONTENDERS", "SECTIONS", "Row", "Settings", "format_table"]

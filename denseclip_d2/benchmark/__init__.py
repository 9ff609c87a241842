from .measure import Measurement, format_table
from .sections import SECTIONS
from .settings import CANDIDATES, Settings

__all__ = ["CANDIDATES", "SECTIONS", "Measurement", "Settings", "format_table"]

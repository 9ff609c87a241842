"""What is wrong with a set-up, and the way out; nothing is downloaded or changed."""

from .examine import examine
from .finding import Finding

__all__ = ["Finding", "examine"]

"""Checks of an installation, each with what to do. They download and change nothing."""

from .examine import examine
from .finding import Finding

__all__ = ["Finding", "examine"]

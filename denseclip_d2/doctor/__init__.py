"""Checks of an installation, each with what to do. They download and change nothing."""

from .check_result import CheckResult
from .examine import examine

__all__ = ["CheckResult", "examine"]

"""Rows of config overrides, a training for each of their seeds, and the table of the results."""

from .runs import TrainingJob, finished, run_all
from .sweep import Sweep, Variant, read_sweep
from .table import write_table

__all__ = ["Sweep", "Variant", "TrainingJob", "finished", "read_sweep", "run_all", "write_table"]

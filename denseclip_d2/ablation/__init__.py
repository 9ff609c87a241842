"""Rows of config overrides, a training for each of their seeds, and the table of the results."""

from .rows import Ablation, Row, read_ablation
from .runs import Run, finished, run_all
from .table import write_table

__all__ = ["Ablation", "Row", "Run", "finished", "read_ablation", "run_all", "write_table"]

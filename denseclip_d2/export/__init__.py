from .evaluation import evaluate_file
from .exporting import export_model
from .formats import FORMATS

__all__ = ["FORMATS", "evaluate_file", "export_model"]

from .evaluation import evaluate_file
from .exporting import export_model, files_of
from .formats import FORMATS
from .precision import PRECISIONS

__all__ = ["FORMATS", "PRECISIONS", "evaluate_file", "export_model", "files_of"]

from .evaluation import evaluate_file
from .export_model import export_model, files_of
from .formats import FORMATS
from .precision import EXPORT_PRECISIONS

__all__ = ["FORMATS", "EXPORT_PRECISIONS", "evaluate_file", "export_model", "files_of"]

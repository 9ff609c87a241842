from .export_model import export_model, files_of
from .formats import FORMATS
from .precision import EXPORT_PRECISIONS

__all__ = ["FORMATS", "EXPORT_PRECISIONS", "export_model", "files_of"]

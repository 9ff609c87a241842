from .checkpointer import DenseCLIPCheckpointer
from .exported import export
from .openclip import resolve_openclip_path

__all__ = ["DenseCLIPCheckpointer", "export", "resolve_openclip_path"]

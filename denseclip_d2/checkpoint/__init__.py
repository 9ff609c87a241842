from .checkpointer import DenseCLIPCheckpointer
from .exported import export, read_header
from .openclip import resolve_openclip_path

__all__ = ["DenseCLIPCheckpointer", "export", "read_header", "resolve_openclip_path"]

from .checkpointer import DenseCLIPCheckpointer
from .openclip import resolve_openclip_path

__all__ = ["DenseCLIPCheckpointer", "resolve_openclip_path"]

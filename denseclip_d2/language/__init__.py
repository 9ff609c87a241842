from .build import TextEncoder, build_text_encoder
from .hub_text_encoder import HubTextEncoder
from .name_table import NameTable
from .prompting import PromptedTextEncoder
from .text_encoder import CLIPTextEncoder

__all__ = [
    "CLIPTextEncoder",
    "HubTextEncoder",
    "NameTable",
    "PromptedTextEncoder",
    "TextEncoder",
    "build_text_encoder",
]

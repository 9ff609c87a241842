from .prompting import PromptedTextEncoder
from .text_encoder import CLIPTextEncoder

__all__ = ["CLIPTextEncoder", "PromptedTextEncoder"]

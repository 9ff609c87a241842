from .prompting import PromptedTextEncoder

__all__ = ["PromptedTextEncoder"]

from ..clip_models import CLIPArchitecture
from .hub_text_encoder import HubTextEncoder
from .text_encoder import CLIPTextEncoder
from .tokenizers import Tokenizer

TextEncoder = CLIPTextEncoder | HubTextEncoder


def build_text_encoder(architecture: CLIPArchitecture, tokenizer: Tokenizer | None = None) -> TextEncoder:
    """Build the text encoder of an architecture, with random weights.

    Args:
        tokenizer: decides start tokens and padding; None: CLIP's.

    Raises:
        ImportError, FileNotFoundError: see :meth:`HubTextEncoder.from_architecture`.
    """
    kind: type[CLIPTextEncoder] | type[HubTextEncoder]
    kind = HubTextEncoder if architecture.text.hf_model_name else CLIPTextEncoder
    return kind.from_architecture(architecture, tokenizer)

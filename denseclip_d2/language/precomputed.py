from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .prompting import PromptedTextEncoder


@contextmanager
def precomputed_text(model: nn.Module) -> Iterator[None]:
    """Compute the text embeddings of a model once, for what is evaluated in the block.

    Args:
        model: any model, with or without language. Training after the block computes the text again.
    """
    encoders = [module for module in model.modules() if isinstance(module, PromptedTextEncoder)]
    encoders = [encoder for encoder in encoders if encoder.text_embeddings is None]
    for encoder in encoders:
        encoder.precompute_(keep_encoder=True)
    try:
        yield
    finally:
        for encoder in encoders:
            encoder.text_embeddings = None

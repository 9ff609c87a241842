from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .prompts import plain_name


class LearnedEmbedding(nn.Module):
    """A class name whose text embedding is learned, because the word says nothing about an image."""

    def __init__(self, name: str, embed_dim: int):
        """
        Args:
            name: such as "background".
            embed_dim: C, the width of the text embeddings.
        """
        super().__init__()
        self.name = name
        self.embedding = nn.Parameter(nn.init.normal_(torch.empty(embed_dim), std=embed_dim**-0.5))

    def forward(self, text: Tensor, class_names: Sequence[str]) -> Tensor:
        """
        Args:
            text: (B, K, C) text embeddings.
            class_names: K names, which need not have :attr:`name`.
        Returns: (B, K, C), with the learned embedding at the name.
        """
        number = self.number_in(class_names)
        if number is None:
            return text
        here = torch.zeros(text.shape[1], 1, dtype=torch.bool, device=text.device)
        here[number] = True
        return torch.where(here, self.embedding.to(text.dtype), text)

    def number_in(self, class_names: Sequence[str]) -> int | None:
        """Return the number of :attr:`name` among names, compared by :func:`plain_name`; None: not there."""
        own = plain_name(self.name)
        return next((i for i, name in enumerate(class_names) if plain_name(name) == own), None)

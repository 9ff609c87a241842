"""Precomputed text embeddings of many names, in place of a text encoder."""

import difflib
from collections.abc import Sequence

from torch import Tensor, nn


class NameTokenizer:
    """Read a whole name as one token: its place in a list. The interface is that of CLIP's tokenizer."""

    start = end = pad_id = 0

    def __init__(self, names: Sequence[str]):
        """
        Args:
            names: each once. Letter case and needless spaces do not count.
        """
        self._places = {_plain(name): i for i, name in enumerate(names)}

    def encode(self, names: Sequence[str]) -> list[list[int]]:
        """Return the place of each name.

        Raises:
            ValueError: the list lacks a name.
        """
        if lacking := [name for name in names if _plain(name) not in self._places]:
            near = ", ".join(difflib.get_close_matches(_plain(lacking[0]), self._places))
            raise ValueError(
                f"{lacking[0]!r} is none of the {len(self._places)} names whose text embeddings the weights "
                f"hold. Near it: {near or 'none'}. Other names need a text encoder: "
                "docs/photographs.md makes that of the zoo's model."
            )
        return [[self._places[_plain(name)]] for name in names]


class NameTable(nn.Module):
    """Text embeddings of a list of names, with the interface of a text encoder."""

    context_length = 1
    embeddings: Tensor

    def __init__(self, embeddings: Tensor):
        """
        Args:
            embeddings: (N, C), in the order of the names of a :class:`NameTokenizer`.
        """
        super().__init__()
        self.register_buffer("embeddings", embeddings)
        self.vocab_size, self.output_dim = embeddings.shape

    def pack(self, ids: Tensor, n_ctx: int, max_tokens: int = 0) -> nn.ModuleList:
        """Return an empty list: names share no computation."""
        return nn.ModuleList()

    def forward(self, prompts: Tensor | nn.ModuleList, contexts: Tensor | None = None) -> Tensor:
        """
        Args:
            prompts: (K, 1) places of names.
        Returns: (1, K, C) text embeddings.
        """
        assert isinstance(prompts, Tensor)
        return self.embeddings[prompts[:, 0]][None]


def _plain(name: str) -> str:
    return " ".join(name.lower().split())

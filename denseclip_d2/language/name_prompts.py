from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .build import TextEncoder
from .prompts import check_class_names, check_prompts, split_synonyms, tokenize_names
from .tokenizers import Tokenizer

HOW_TO_NAME = "Set MODEL.DENSECLIP.CLASS_NAMES, or correct the categories of the training set."


class NamePrompts(nn.Module):
    """A text encoder, the class names that it reads, and their token ids as the encoder takes them."""

    text_encoder: TextEncoder | None
    text_embeddings: Tensor | None
    prompts: Tensor | None
    packs: nn.ModuleList | None

    def __init__(
        self,
        class_names: Sequence[str],
        stuff_names: Sequence[str],
        text_encoder: TextEncoder | None,
        tokenizer: Tokenizer | None,
        *,
        embed_dim: int,
        n_ctx: int,
        max_name_tokens: int,
        template: str,
        pack_tokens: int,
    ):
        """
        Args:
            n_ctx: number of the contexts before each name.
            template: a sentence with each name; empty: the name alone.
            class_names, stuff_names, text_encoder, tokenizer, embed_dim, max_name_tokens, pack_tokens: see
                :class:`.PromptedTextEncoder`.

        Raises:
            ValueError: names that cannot be read.
        """
        super().__init__()
        self.class_names, self.stuff_names = tuple(class_names), tuple(stuff_names)
        self.text_encoder, self._tokenizer = text_encoder, tokenizer
        self.n_ctx, self.template, self._pack_tokens = n_ctx, template, pack_tokens
        check_class_names(self.names, HOW_TO_NAME)
        self.register_buffer("text_embeddings", None)
        self.register_buffer("prompts", None, persistent=False)
        if text_encoder is None:
            self.text_embeddings = torch.randn(len(self.names), embed_dim)
            return
        words, owners = split_synonyms(self.names)
        self._lay_out(self._tokenize(words, max_name_tokens), owners)

    @property
    def names(self) -> tuple[str, ...]:
        """The class names, and after them those of the stuff of a panoptic model."""
        return self.class_names + self.stuff_names

    @property
    def precomputed(self) -> bool:
        """Return whether ``text_embeddings`` replace the text encoder and the contexts."""
        return self.text_encoder is None

    def encoder_and_prompts(self) -> tuple[TextEncoder, Tensor]:
        """Return the text encoder and the token ids of the names (K, L).

        Raises:
            ValueError: there is no text encoder.
        """
        encoder, _ = self._reader()
        if self._laid_out != self.names:
            self._lay_out(*self.read(self.names))
        assert self.prompts is not None
        return encoder, self.prompts

    def read(self, names: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Return the token ids (S, L) of all synonyms of names, and the number of each synonym's name.

        Raises:
            ValueError: names that :func:`check_class_names` refuses, that read the same or that are too long;
                no text encoder.
        """
        self._reader()
        check_class_names(names)
        words, owners = split_synonyms(names)
        return self._tokenize(words), owners

    def set_class_names(
        self,
        names: Sequence[str],
        text_embeddings: Tensor | None = None,
        *,
        stuff_names: Sequence[str] | None = None,
    ) -> None:
        """Read other names, of any number, in place of the class names.

        Args:
            text_embeddings: (K, C), of names and then stuff, from :meth:`encode_names`; None: to be computed.
            stuff_names: names of the stuff of a panoptic model; None: those before.

        Raises:
            ValueError: see :meth:`read`; names of stuff for a model without, or none for a model
                with. The names are then those of before.
        """
        stuff_names = self.stuff_names if stuff_names is None else tuple(stuff_names)
        if stuff_names and not self.stuff_names:
            raise ValueError("This model labels no stuff: it takes names of classes alone.")
        if self.stuff_names and not stuff_names:
            raise ValueError("This model labels stuff. Give at least one name of stuff.")
        if text_embeddings is not None:
            self.restore(names, stuff_names, text_embeddings)
            return
        check_class_names(names)
        layout = self.read([*names, *stuff_names])
        self.class_names, self.stuff_names = tuple(names), stuff_names
        self._lay_out(*layout)

    def restore(
        self, names: Sequence[str], stuff_names: Sequence[str], text_embeddings: Tensor | None
    ) -> None:
        """Set names that were read before, and their text embeddings (K, C) or None, without any check."""
        self.class_names, self.stuff_names = tuple(names), tuple(stuff_names)
        self.register_buffer("text_embeddings", text_embeddings, persistent=False)

    def _reader(self) -> tuple[TextEncoder, torch.device]:
        """Return the text encoder and the device of token ids, as :meth:`encoder_and_prompts` does."""
        if self.text_encoder is None or self.prompts is None:
            raise ValueError("The model has precomputed text embeddings and no text encoder.")
        return self.text_encoder, self.prompts.device

    def _lay_out(self, prompts: Tensor, owners: list[int]) -> None:
        """Lay the token ids of the class names out for the text encoder."""
        assert self.text_encoder is not None
        device = prompts.device if self.prompts is None else self.prompts.device
        self.packs = self.text_encoder.pack(prompts, self.n_ctx, self._pack_tokens).to(device)
        self.prompts, self._owners, self._laid_out = prompts.to(device), owners, self.names

    def _tokenize(self, names: Sequence[str], max_name_tokens: int = 0) -> Tensor:
        encoder = self.text_encoder
        assert encoder is not None
        if self.template:  # the length is that of a name, not of a sentence with it
            names, max_name_tokens = [self.template.format(name) for name in names], 0
        prompts = tokenize_names(names, max_name_tokens, self._tokenizer)
        check_prompts(prompts, names, self.n_ctx, encoder.vocab_size, encoder.context_length)
        return prompts

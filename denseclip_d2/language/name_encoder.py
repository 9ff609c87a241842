from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..clip_models import get_clip_architecture
from ..data.class_names import words_of_datasets
from .build import TextEncoder, build_text_encoder
from .cuda_graph import CUDAGraphTextEncoder
from .name_table import NameTable, NameTokenizer
from .prompts import check_class_names
from .random_text import random_text
from .sentences import SentenceReader
from .text_encoder import tokens_of_pack
from .tokenizers import get_tokenizer

MODES = ("post", "pre", "context", "template", "random")
WITHOUT_CONTEXTS = ("template", "random")
HOW_TO_NAME = "Set MODEL.DENSECLIP.CLASS_NAMES, or correct the categories of the training set."


class NameEncoder(nn.Module):
    """A text encoder and the class names that it reads, with contexts or without, and without an image.

    The token ids of the class names are laid out once. Other names are laid out in each call.
    """

    text_encoder: TextEncoder | None
    prompts: Tensor | None
    packs: nn.ModuleList | None

    def __init__(
        self,
        class_names: Sequence[str],
        stuff_names: Sequence[str],
        text_encoder: TextEncoder | None,
        sentences: SentenceReader | None,
        *,
        mode: str,
        vocabulary: Sequence[str],
        pack_tokens: int,
        cuda_graph: bool,
    ):
        """
        Args: see :class:`.PromptedTextEncoder`. Mode "random" has :func:`random_text` in place of the text
            encoder's embeddings.

        Raises:
            ValueError: an unknown mode, or names that cannot be read.
        """
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; use one of {', '.join(MODES)}.")
        super().__init__()
        self.class_names, self.stuff_names = tuple(class_names), tuple(stuff_names)
        self.mode, self.vocabulary = mode, tuple(vocabulary)
        self.text_encoder, self.sentences = text_encoder, sentences
        self._pack_tokens, self._graphed = pack_tokens, CUDAGraphTextEncoder(cuda_graph)
        self.register_buffer("prompts", None, persistent=False)
        check_class_names(self.names, HOW_TO_NAME)
        if text_encoder is not None and sentences is not None:
            self._lay_out(*sentences.read(self.names, text_encoder, of_training=True))

    @classmethod
    def from_config(cls, cfg, class_names: Sequence[str]) -> dict[str, Any]:
        """Return the arguments that a config decides."""
        architecture = get_clip_architecture(cfg.MODEL.DENSECLIP.CLIP_MODEL)
        text_encoder: Any = None
        sentences, prompt = None, cfg.MODEL.DENSECLIP.PROMPT
        vocabulary, averaged = words_of_datasets(prompt.VOCABULARY), bool(prompt.TEMPLATES)
        if not prompt.PRECOMPUTED:
            tokenizer = get_tokenizer(architecture, prompt.TOKENIZER)
            text_encoder = build_text_encoder(architecture, tokenizer)
            if prompt.MODE in WITHOUT_CONTEXTS:
                templates = prompt.TEMPLATES or (prompt.TEMPLATE,)
                sentences = SentenceReader(tokenizer, templates=templates, normalize=averaged)
            else:
                n_ctx, length = prompt.N_CTX, prompt.MAX_NAME_TOKENS
                sentences = SentenceReader(tokenizer, n_ctx=n_ctx, length=length)
        elif vocabulary:
            text_encoder = NameTable(torch.zeros(len(vocabulary), architecture.embed_dim))
            sentences = SentenceReader(NameTokenizer(vocabulary), normalize=averaged)
        return {
            "class_names": class_names,
            "stuff_names": cfg.MODEL.DENSECLIP.STUFF_NAMES,
            "text_encoder": text_encoder,
            "sentences": sentences,
            "vocabulary": vocabulary,
            "cuda_graph": prompt.CUDA_GRAPH,
            "pack_tokens": tokens_of_pack(torch.device(cfg.MODEL.DEVICE)),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The class names, and after them those of the stuff of a panoptic model."""
        return self.class_names + self.stuff_names

    @property
    def readable_names(self) -> tuple[str, ...]:
        """The names of the :class:`NameTable` in place of a text encoder; empty if there is none."""
        return self.vocabulary if isinstance(self.text_encoder, NameTable) else ()

    def keep_vocabulary(self) -> None:
        """Replace the text encoder by the embeddings of the vocabulary."""
        _, sentences, _ = self._reader()
        if not isinstance(self.text_encoder, NameTable):
            table: Any = NameTable(self.encode_names(self.vocabulary, None)[0])
            self.text_encoder = table
            self.sentences = SentenceReader(NameTokenizer(self.vocabulary), normalize=sentences.normalize)
            self._lay_out(*self.sentences.read(self.names, table))

    def read(self, names: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Return the token ids (S, L) of all sentences of names, and the number of each sentence's name.

        Raises:
            ValueError: names that :func:`check_class_names` refuses, that read the same or that are too long;
                no text encoder.
        """
        encoder, sentences, _ = self._reader()
        check_class_names(names)
        return sentences.read(names, encoder)

    @torch.no_grad()
    def encode_names(self, names: Sequence[str], contexts: Tensor | None) -> Tensor:
        """Return text embeddings of any names, before the image refines them.

        Args:
            names: n names of any length.
            contexts: (B, N, D), such as :attr:`contexts`; None in mode "template".
        Returns: (B, n, C).
        Raises:
            ValueError: see :meth:`read`.
        """
        prompts, owners = self.read(names)
        *_, device = self._reader()
        return self._encode(names, prompts.to(device), owners, contexts)

    def encode_class_names(self, contexts: Tensor | None) -> Tensor:
        """Return text embeddings (B, K, C) of :attr:`names`, as of :meth:`encode_names`."""
        _, prompts = self.encoder_and_prompts()
        return self._encode(self.names, self.packs or prompts, self._owners, contexts)

    def encoder_and_prompts(self) -> tuple[TextEncoder, Tensor]:
        """Return the text encoder and the token ids of the names (K, L).

        Raises:
            ValueError: there is no text encoder.
        """
        encoder, *_ = self._reader()
        if self._laid_out != self.names:
            self._lay_out(*self.read(self.names))
        assert self.prompts is not None
        return encoder, self.prompts

    def _encode(
        self,
        names: Sequence[str],
        prompts: Tensor | nn.ModuleList,
        owners: Sequence[int],
        contexts: Tensor | None,
    ) -> Tensor:
        encoder, sentences, device = self._reader()
        if self.mode == "random":
            return random_text(names, encoder.output_dim).to(device)[None]
        return sentences.mean(self._graphed(encoder, prompts, contexts), owners)

    def _reader(self) -> tuple[TextEncoder, SentenceReader, torch.device]:
        """Return the text encoder, what reads names for it, and the device of token ids.

        Raises:
            ValueError: there is no text encoder.
        """
        if self.text_encoder is None or self.prompts is None or self.sentences is None:
            raise ValueError("The model has precomputed text embeddings and no text encoder.")
        return self.text_encoder, self.sentences, self.prompts.device

    def _lay_out(self, prompts: Tensor, owners: list[int]) -> None:
        """Lay the token ids of the class names out for the text encoder."""
        assert self.text_encoder is not None and self.sentences is not None
        device = prompts.device if self.prompts is None else self.prompts.device
        self.packs = self.text_encoder.pack(prompts, self.sentences.n_ctx, self._pack_tokens).to(device)
        self.prompts, self._owners, self._laid_out = prompts.to(device), owners, self.names

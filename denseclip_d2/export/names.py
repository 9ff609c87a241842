"""Names of an exported model that takes any: its input of text embeddings, and the file that makes them."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip_models.layers import multi_head_attention
from ..data.class_names import get_class_names
from ..data.tasks import learns_a_name, takes_any_names
from ..language import PromptedTextEncoder
from ..language.prompts import mean_of_synonyms, split_synonyms, tokenize_names
from ..visual.vit_block import projected
from .runtimes import Run

ReadNames = Sequence[tuple[Sequence[np.ndarray], Callable[[], AbstractContextManager]]]
"""Lists of names: the text embeddings of each for a file, and what makes the model itself read it."""
TEXT = "text_embeddings"
"""The second input of a model, and the output of its names' encoder."""
TOKENIZER = "tokenizer.json"
UNSEEN = ("garden gnome", "rubber duck|bath toy", "wheelbarrow")
"""Names that a file is verified with beside those of the training."""


def names_file(file: Path) -> Path:
    """Return the file of the names' encoder beside a model's."""
    return file.with_name("".join(["names", *file.suffixes]))


def takes_text(cfg: CfgNode) -> bool:
    """Return whether the exported file of a config's model takes text embeddings of any names."""
    return takes_any_names(cfg) and not cfg.MODEL.DENSECLIP.PROMPT.PRECOMPUTED


class GivenText(nn.Module):
    """Text embeddings that are an input, in place of a model's :class:`PromptedTextEncoder`.

    A learned name of the model, such as "background", comes after the given ones.
    """

    words: Tensor
    learned: Tensor
    unread_text = None  # of training steps

    def __init__(self, language: PromptedTextEncoder, *, fixed_number: bool = False):
        """
        Args:
            fixed_number: whether all inputs have as many names as the training.
        """
        super().__init__()
        self.fixed_number = fixed_number
        self.class_names, self.mode, self.stuff_names = language.class_names, language.mode, ()
        learned = language.learned
        self.learned_names: tuple[str, ...] = ()
        # One empty tensor each, for TorchScript refuses tensors that are shared.
        self.given, words, embedding = (torch.zeros(0, language.embed_dim) for _ in range(3))
        if learned and learned.name in language.class_names:
            self.learned_names = (learned.name,)
            # The image refines the word beside the other names, and the learned embedding then replaces it.
            words = language.encode_names(self.learned_names, language.contexts)[0]
            embedding = learned.embedding[None]
        self.register_buffer("words", words)
        self.register_buffer("learned", embedding)
        if self.mode == "post":
            self.context_decoder, self.gamma = language.context_decoder, language.gamma

    def forward(self, global_embedding: Tensor, dense_embedding: Tensor) -> Tensor:
        """Return (B or 1, K, C) text embeddings, as :meth:`PromptedTextEncoder.forward` does."""
        text = torch.cat([self.given, self.words])[None]
        if self.mode == "post":
            text = text.expand(global_embedding.shape[0], -1, -1)  # len() would be a constant of a trace
            text = text + self.gamma * self.context_decoder(text, global_embedding, dense_embedding)
        if self.learned_names:
            text = torch.cat([text[:, :-1], self.learned.expand(text.shape[0], -1, -1)], dim=1)
        return text


@contextmanager
def given_text(model: Any, text: Tensor | None) -> Iterator[None]:
    """Let a model with :class:`GivenText` read text embeddings (K, C); None: leave any model as it is."""
    if text is None:
        yield
        return
    language, before = model.backbone.language, model.backbone.language.given
    sized = {module: module.num_classes for module in model.modules() if hasattr(module, "num_classes")}
    try:
        language.given = text
        for module in sized:
            module.num_classes = text.shape[0] + len(language.words)
        yield
    finally:
        language.given = before
        for module, number in sized.items():
            module.num_classes = number


class NamesEncoder(nn.Module):
    """The text encoder with the contexts of a model, from token ids to text embeddings, to be traced."""

    def __init__(self, language: PromptedTextEncoder, length: int | None = None):
        """
        Args:
            length: number of tokens of the only prompt that is taken at a time; None: any of both.
        """
        super().__init__()
        self.inputs = {"token_ids": {0: "words", 1: "tokens"} if length is None else {}}
        self.text_encoder = copy.deepcopy(language.encoder_and_prompts()[0])
        self.contexts = language.contexts
        for block in self.text_encoder.transformer.resblocks:
            block.attn = _SelfAttention(block.attn)

    def forward(self, token_ids: Tensor) -> dict[str, Tensor]:
        """Return ``text_embeddings`` (S, C) of token ids (S, L), with start and end, padded with 0."""
        return {TEXT: self.text_encoder.encode_unpacked(token_ids, self.contexts)[0]}


class _SelfAttention(nn.Module):
    """``nn.MultiheadAttention``, whose own trace has a constant number of tokens."""

    def __init__(self, attn: nn.MultiheadAttention):
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor, *_: Tensor, need_weights: bool, attn_mask: Tensor) -> tuple[Tensor]:
        query, key, value = projected(self.attn, x)
        attended = multi_head_attention(query, key, value, self.attn.num_heads, attn_mask)
        return (self.attn.out_proj(attended),)


class Names:
    """The names of a model that is exported with text embeddings as an input."""

    def __init__(self, model: Any, cfg: CfgNode, *, fixed_sizes: bool):
        """
        Args:
            model: on the CPU. It reads :class:`GivenText` from now on.
            fixed_sizes: whether the files take as many names as the training had, and a prompt at a time.
        """
        self.model, self.language = model, model.backbone.language
        model.backbone.language = GivenText(self.language, fixed_number=fixed_sizes)
        self.learned = model.backbone.language.learned_names
        self.trained = tuple(name for name in self.language.class_names if name not in self.learned)
        self.prompt = prompt_of(cfg)
        encoder, _ = self.language.encoder_and_prompts()
        contexts = 0 if self.language.contexts is None else self.language.contexts.shape[1]
        self.most_tokens = encoder.context_length - contexts
        self.length = self.most_tokens if fixed_sizes else None

    def encoder(self) -> tuple[NamesEncoder, Tensor]:
        """Return what becomes the file of the names' encoder, and an example of its input."""
        words = self.trained[:1] if self.length else self.trained
        return NamesEncoder(self.language, self.length).eval(), token_ids(words, self.prompt, self.length)

    def verified(self, encode: Run) -> ReadNames:
        """Return the names that a file is verified with: those of the training, and some with others beside.

        Args:
            encode: the file of a :class:`NamesEncoder`.
        """
        known = {word.lower() for word in split_synonyms(self.language.class_names)[0]}
        others = [name for name in UNSEEN if known.isdisjoint(split_synonyms([name])[0])]
        mixed = [*self.trained[:0:-1], *others]
        lists = self.trained, mixed[-len(self.trained) :] if self.length else mixed
        return [
            ([encoded_names(encode, names, self.prompt, self.length)], partial(self.read, names))
            for names in lists
        ]

    def text(self) -> Tensor:
        """Return the text embeddings (K, C) of the names of the training."""
        return self.language.encode_names(self.trained, self.language.contexts)[0]

    @contextmanager
    def read(self, names: Sequence[str]) -> Iterator[None]:
        """Let the model read names for a while as without an export, with its own text encoder."""
        backbone = self.model.backbone
        given, backbone.language = backbone.language, self.language
        try:
            with self.model.given_names([*names, *self.learned]):
                yield
        finally:
            backbone.language = given

    def about(self) -> dict[str, str]:
        """Return metadata of both files: how names become token ids, and where the learned name comes."""
        return {
            "class_names": json.dumps(self.trained),
            "learned_names": json.dumps(self.learned),
            "prompt": self.prompt,
            "most_tokens": str(self.most_tokens),
        }


def prompt_of(cfg: CfgNode) -> str:
    """Return the sentence that a name is read in, with {} for the name."""
    prompt = cfg.MODEL.DENSECLIP.PROMPT
    return prompt.TEMPLATE if prompt.MODE == "template" else "{}"


def given_names(cfg: CfgNode, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names that a file is given, and the learned name, if any, that it adds as its last class."""
    known = get_class_names(cfg) if learns_a_name(cfg) else ()
    learned = {cfg.MODEL.DENSECLIP.PROMPT.LEARNED_NAME}.intersection(known)
    return [name for name in names if name not in learned], list(learned)


def encoded_names(encode: Run, names: Sequence[str], prompt: str, length: int | None = None) -> np.ndarray:
    """Return the text embeddings (K, C) of names by the file of a :class:`NamesEncoder` of this length."""
    words, owners = split_synonyms(names)
    ids = token_ids(words, prompt, length)
    text = [encode(part.numpy())[TEXT] for part in ids.split(1 if length else len(ids))]
    return mean_of_synonyms(torch.from_numpy(np.concatenate(text))[None], owners)[0].numpy()


def token_ids(words: Sequence[str], prompt: str, length: int | None = None) -> Tensor:
    """Return the (S, L) token ids of words in a sentence, padded with 0 to ``length``."""
    ids = tokenize_names([prompt.format(word) for word in words])
    return ids if length is None else F.pad(ids, (0, length - ids.shape[1]))

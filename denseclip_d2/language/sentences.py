"""How names become the sentences that a text encoder reads, and embeddings of sentences those of names."""

import re
from collections.abc import Sequence

import torch.nn.functional as F
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from .build import TextEncoder
from .prompts import check_prompts, mean_of_synonyms, split_synonyms, tokenize_names
from .tokenizers import Tokenizer, clip_tokenizer

TEMPLATE_SETS = {"imagenet": tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)}
"""Templates by the name of their set. "imagenet" has the 80 of the notebook in CLIP's release."""

BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])\s+")


class SentenceReader:
    """The sentences of names: a template for each, or several; parts of a description that is too long.

    A description is a name of several sentences. If the text encoder has too few positions, each part holds
    as many sentences as fit. A name's embedding is the mean over all of its templates, synonyms and parts.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        *,
        templates: Sequence[str] = ("{}",),
        n_ctx: int = 0,
        length: int = 0,
        normalize: bool = False,
    ):
        """
        Args:
            tokenizer: None: CLIP's.
            templates: sentences with {} in place of the name, or names of :data:`TEMPLATE_SETS`.
            n_ctx: context vectors before each name.
            length: token ids of a name of the training; 0: as many as the longest has.
            normalize: normalize the embeddings before and after the mean, as CLIP's notebook does.
        """
        self.tokenizer, self.normalize = tokenizer or clip_tokenizer(), normalize
        self.n_ctx, self.length = n_ctx, length
        self.templates = [x for name in templates for x in TEMPLATE_SETS.get(name, (name,))]

    def read(
        self, names: Sequence[str], encoder: TextEncoder, *, of_training: bool = False
    ) -> tuple[Tensor, list[int]]:
        """Return the token ids (S, L) of all sentences, and the number of each sentence's name.

        Args:
            encoder: the text encoder that is to read the sentences.
            of_training: L is ``length``; False: as many as the longest sentence has.

        Raises:
            ValueError: names that read the same or that are too long.
        """
        words, owners = split_synonyms(names)
        positions = encoder.context_length
        parts = [(part, i) for i, word in enumerate(words) for part in self._parts(word, positions)]
        # All names in one template follow each other, for they share its beginning.
        sentences = [template.format(part) for template in self.templates for part, _ in parts]
        prompts = tokenize_names(sentences, self.length if of_training else 0, self.tokenizer)
        of_words = [i for _, i in parts] * len(self.templates)
        check_prompts(prompts, sentences, self.n_ctx, encoder.vocab_size, positions, of_words)
        return prompts, [owners[i] for i in of_words]

    def tokens_of(self, words: str) -> list[int]:
        """Return the token ids of words, without start and end."""
        ids = self.tokenizer.encode([words])[0]
        return ids[self.tokenizer.start : len(ids) - self.tokenizer.end]

    def mean(self, text: Tensor, owners: Sequence[int]) -> Tensor:
        """Return the embeddings (B, K, C) of names from those of their sentences, (B, S, C)."""
        if not self.normalize:
            return mean_of_synonyms(text, owners)
        return F.normalize(mean_of_synonyms(F.normalize(text, dim=-1), owners), dim=-1)

    def _parts(self, word: str, positions: int) -> list[str]:
        """Return the parts of a description that fit the positions; a name that has no parts stays whole."""
        first, *others = BETWEEN_SENTENCES.split(word)
        if not others or self._fits(word, positions):
            return [word]
        parts = [first]
        for sentence in others:
            longer = f"{parts[-1]} {sentence}"
            if self._fits(longer, positions):
                parts[-1] = longer
            else:
                parts.append(sentence)
        return parts

    def _fits(self, word: str, positions: int) -> bool:
        ids = self.tokenizer.encode([template.format(word) for template in self.templates])
        return max(map(len, ids)) + self.n_ctx <= positions

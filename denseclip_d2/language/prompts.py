from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .tokenizers import Tokenizer, clip_tokenizer

SYNONYM = "|"
"""Separates the synonyms of a class, which share the mean of their text embeddings."""


def check_class_names(names: Sequence[str], hint: str = "") -> None:
    """Check that class names tell the classes apart.

    Args:
        hint: what to do, for the end of the message.

    Raises:
        ValueError: no names, an empty one, one that is no string, or one given twice, also as a synonym.
            Names are compared by :func:`plain_name`.
    """
    if fault := _fault_of(names):
        raise ValueError(f"{fault} {hint}".rstrip())


def _fault_of(names: Sequence[str]) -> str:
    """Return what is wrong with class names; empty if nothing is."""
    if not names:
        return "No class names."
    if not all(isinstance(name, str) for name in names):
        wrong = next(name for name in names if not isinstance(name, str))
        return f"Class names must be strings, not {wrong!r}."
    words, owners = split_synonyms([plain_name(name) for name in names])
    if "" in words:
        empty = owners[words.index("")]
        fault = f", {names[empty]!r}, has an empty synonym." if SYNONYM in names[empty] else " is empty."
        return f"The name of class {empty}{fault}"
    repeated = [word for word, count in Counter(words).items() if count > 1]
    return f"Class names given more than once: {', '.join(map(repr, repeated))}." if repeated else ""


@lru_cache(maxsize=65536)
def plain_name(name: str) -> str:
    """Return a name without letter case and needless spaces, which CLIP's tokenizer drops."""
    return SYNONYM.join(" ".join(word.split()) for word in name.lower().split(SYNONYM))


def split_synonyms(names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the words of names such as "sofa|couch", and the number of the name that each word is of."""
    words = [(word.strip(), i) for i, name in enumerate(names) for word in name.split(SYNONYM)]
    return [word for word, _ in words], [i for _, i in words]


def seen_names(names: Sequence[str], trained: Iterable[str]) -> list[bool]:
    """Return whether each name shares a synonym with the names of the training, by :func:`plain_name`."""
    known = {*plain_name(SYNONYM.join(trained)).split(SYNONYM)}
    return [not known.isdisjoint(plain_name(name).split(SYNONYM)) for name in names]


def mean_of_synonyms(text: Tensor, owners: Sequence[int]) -> Tensor:
    """Return (B, K, C) means of the embeddings (B, S, C) of words that are of the same name.

    Args:
        owners: S numbers of names, of which the last is the highest.
    """
    if not owners or len(owners) == owners[-1] + 1:
        return text
    index = torch.tensor(owners, device=text.device)
    sums = text.new_zeros(len(text), owners[-1] + 1, text.shape[2]).index_add(1, index, text)
    return sums / index.bincount().to(text.dtype)[:, None]


def tokenize_names(names: Sequence[str], length: int = 0, tokenizer: Tokenizer | None = None) -> Tensor:
    """Return the token ids of ``[sot] name [eot]`` for every name (paper, sec. 3.3).

    Args:
        names: K names or sentences.
        length: L, token ids of a name with start and end; 0: as many as the longest name has.
        tokenizer: None: CLIP's byte-pair encoding.
    Returns: (K, L) int64, padded.
    Raises:
        ValueError: a name needs more than ``length`` ids (names are never cut), or contains a special token.
    """
    tokenizer = tokenizer or clip_tokenizer()
    ids = tokenizer.encode(names)
    longest = max(map(len, ids))
    length = length or longest
    if longest > length:
        around = tokenizer.start + tokenizer.end
        too_long = [
            f"{name!r} ({len(i) - around})" for name, i in zip(names, ids, strict=True) if len(i) > length
        ]
        raise ValueError(
            f"MODEL.DENSECLIP.PROMPT.MAX_NAME_TOKENS = {length} leaves {length - around} tokens for a name. "
            f"More are needed by {', '.join(too_long[:5])}{' and others' if len(too_long) > 5 else ''}. "
            f"Set it to {longest}, or to 0 to fit the longest name, or shorten the names: keep the first of "
            "several synonyms."
        )
    # On the CPU even where a model is built on the meta device, because checks read the numbers.
    return torch.tensor([i + [tokenizer.pad_id] * (length - len(i)) for i in ids], device="cpu")


def check_prompts(
    prompts: Tensor,
    names: Sequence[str],
    n_ctx: int,
    vocab_size: int,
    context_length: int,
    owners: Sequence[int],
) -> None:
    """Check that a text encoder can read prompts and tell them apart.

    Args:
        prompts: (K, L) token ids, from :func:`tokenize_names`.
        names: K names or sentences.
        n_ctx: context vectors of each prompt.
        vocab_size, context_length: of the text encoder.
        owners: the number of each prompt's word.

    Raises:
        ValueError: two words have the same prompts, an id is outside the vocabulary, or the longest prompt
            does not fit.
    """
    readings: dict[int, list[int]] = {owner: [] for owner in owners}
    for owner, kind in zip(owners, prompts.unique(dim=0, return_inverse=True)[1].tolist(), strict=True):
        readings[owner].append(kind)
    counts = Counter(map(tuple, readings.values()))
    if len(counts) < len(readings):
        same = [name for name, i in zip(names, owners, strict=False) if counts[tuple(readings[i])] > 1]
        same = list(dict.fromkeys(same))
        raise ValueError(
            "Some class names read the same to CLIP's tokenizer, or PROMPT.TEMPLATE has no {}: "
            f"{', '.join(map(repr, same[:5]))}{' and others' if len(same) > 5 else ''}. Rename the classes."
        )
    if prompts.max() >= vocab_size:
        raise ValueError(
            f"The tokenizer returns id {prompts.max()}, but the text encoder has {vocab_size} ids."
        )
    if prompts.shape[1] + n_ctx > context_length:
        longest = max(names, key=len)
        raise ValueError(
            f"The longest class name takes {prompts.shape[1]} tokens, beside {n_ctx} contexts "
            f"(MODEL.DENSECLIP.PROMPT.N_CTX). The text encoder has {context_length} positions. Shorten the "
            f"names, such as {longest if len(longest) <= 40 else f'{longest[:40]}...'!r}, or "
            f"{'use fewer contexts' if n_ctx else 'PROMPT.TEMPLATE'}."
        )

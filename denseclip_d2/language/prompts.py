from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from .tokenizers import Tokenizer, clip_tokenizer


def check_class_names(names: Sequence[str]) -> None:
    """Refuse class names that cannot tell classes apart.

    Raises:
        ValueError: no names, an empty one, one that is no string, or one given twice (letter case and spaces
            aside, which CLIP's tokenizer drops).
    """
    hint = "Set MODEL.DENSECLIP.CLASS_NAMES, or correct the categories of the training set."
    if not names:
        raise ValueError(f"No class names. {hint}")
    if not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"Class names are words, not {next(n for n in names if not isinstance(n, str))!r}. {hint}"
        )
    plain = [" ".join(name.lower().split()) for name in names]
    if "" in plain:
        raise ValueError(f"The name of class {plain.index('')} is empty. {hint}")
    repeated = [name for name, count in Counter(plain).items() if count > 1]
    if repeated:
        raise ValueError(f"Class names given more than once: {', '.join(map(repr, repeated))}. {hint}")


def tokenize_names(names: Sequence[str], length: int = 0, tokenizer: Tokenizer | None = None) -> Tensor:
    """Ids of ``[sot] name [eot]`` for every name (paper, sec. 3.3).

    Args:
        names: K names or sentences.
        length: L, ids a name may take, start and end included; 0 fits the longest.
        tokenizer: None: CLIP's byte-pair encoding.
    Returns: (K, L) int64, padded.
    Raises:
        ValueError: a name takes more than ``length`` ids (none is ever cut short), or has a special token.
    """
    tokenizer = tokenizer or clip_tokenizer()
    ids = tokenizer.encode(names)
    longest = max(map(len, ids))
    length = length or longest
    if longest > length:
        around = tokenizer.start + 1
        too_long = [
            f"{name!r} ({len(i) - around})" for name, i in zip(names, ids, strict=True) if len(i) > length
        ]
        raise ValueError(
            f"MODEL.DENSECLIP.PROMPT.NAME_LENGTH = {length} leaves {length - around} tokens for a name; more "
            f"are needed by {', '.join(too_long[:5])}{' and others' if len(too_long) > 5 else ''}. "
            f"Set it to {longest}, or to 0 to fit the longest, or shorten the names (of a list of synonyms "
            "keep the first)."
        )
    # Numbers to be looked at, also where a model is built without memory, on the meta device.
    return torch.tensor([i + [tokenizer.pad_id] * (length - len(i)) for i in ids], device="cpu")


def check_prompts(
    prompts: Tensor, names: Sequence[str], num_contexts: int, vocab_size: int, context_length: int
) -> None:
    """Refuse prompts that a text encoder cannot take, or tell apart.

    Args:
        prompts: (K, L) token ids, of :func:`tokenize_names`.
        names: K names or sentences.
        num_contexts: context vectors that go with each.
        vocab_size, context_length: the text encoder's.

    Raises:
        ValueError: two are the same; an id is beyond the vocabulary; the longest does not fit.
    """
    if len(prompts.unique(dim=0)) < len(prompts):
        raise ValueError(
            "Some class names read the same to CLIP's tokenizer, or PROMPT.TEMPLATE has no {}: "
            f"{', '.join(map(repr, names[:5]))} ... Rename the classes (MODEL.DENSECLIP.CLASS_NAMES)."
        )
    if prompts.max() >= vocab_size:
        raise ValueError(f"The tokenizer gives id {prompts.max()}, and the text encoder has {vocab_size}.")
    if prompts.shape[1] + num_contexts > context_length:
        raise ValueError(
            f"The longest class name takes {prompts.shape[1]} tokens, and {num_contexts} contexts "
            f"(MODEL.DENSECLIP.PROMPT.NUM_CONTEXTS) go with it; the text encoder has {context_length} "
            f"positions. Shorten the names or {'take fewer contexts' if num_contexts else 'PROMPT.TEMPLATE'}."
        )

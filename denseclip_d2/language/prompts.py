from collections import Counter
from collections.abc import Sequence
from functools import cache

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


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


def tokenize_names(names: Sequence[str], length: int = 0, vocab_size: int = 49408) -> Tensor:
    """Ids of ``[sot] name [eot]`` for every name, by CLIP's byte-pair encoding (paper, sec. 3.3).

    Args:
        names: K names or sentences.
        length: L, ids a name may take, start and end included; 0 fits the longest.
        vocab_size: number of ids the text encoder knows.
    Returns: (K, L) int64, padded with 0.
    Raises:
        ValueError: a name takes more than ``length`` ids (none is ever cut short), or has a special token.
    """
    tokenizer = _tokenizer()
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(f"CLIP's tokenizer has {tokenizer.vocab_size} ids, the text encoder {vocab_size}.")
    encoded = [tokenizer.encode(name) for name in names]
    for name, tokens in zip(names, encoded, strict=True):
        if not set(tokens).isdisjoint(tokenizer.all_special_ids):
            raise ValueError(
                f"Class name {name!r} has a special token of CLIP's tokenizer in it. Rename the class."
            )
    ids = [[tokenizer.sot_token_id, *tokens, tokenizer.eot_token_id] for tokens in encoded]
    longest = max(map(len, ids))
    length = length or longest
    if longest > length:
        too_long = [f"{name!r} ({len(i) - 2})" for name, i in zip(names, ids, strict=True) if len(i) > length]
        raise ValueError(
            f"MODEL.DENSECLIP.PROMPT.NAME_LENGTH = {length} leaves {length - 2} tokens for a name; more are "
            f"needed by {', '.join(too_long[:5])}{' and others' if len(too_long) > 5 else ''}. "
            f"Set it to {longest}, or to 0 to fit the longest, or shorten the names (of a list of synonyms "
            "keep the first)."
        )
    # Numbers to be looked at, also where a model is built without memory, on the meta device.
    return torch.tensor([i + [0] * (length - len(i)) for i in ids], device="cpu")

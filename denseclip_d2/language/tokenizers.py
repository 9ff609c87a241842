"""The tokenizers of CLIP's text encoders: CLIP's own, and those that open_clip fetches from a hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import open_clip
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from ..clip_models import CLIPArchitecture


class CLIPTokenizer:
    """CLIP's byte-pair encoding, ``[sot] name [eot]``; the end token has the highest id.

    Attributes:
        start: number of tokens before the words, 1 or 0. Contexts go after these tokens.
        pad_id: fills sequences up.
    """

    start, pad_id = 1, 0

    def __init__(self) -> None:
        self._tokenizer = SimpleTokenizer()

    def encode(self, names: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each name, with start and end token, without padding.

        Raises:
            ValueError: a name contains a special token.
        """
        tokenizer = self._tokenizer
        words = [tokenizer.encode(name) for name in names]
        _check_no_special(names, words, tokenizer.all_special_ids)
        return [[tokenizer.sot_token_id, *ids, tokenizer.eot_token_id] for ids in words]


@dataclass(frozen=True)
class HubTokenizer:
    """A tokenizer of the Hugging Face hub, such as SigLIP's, with the interface of :class:`CLIPTokenizer`."""

    hub: HFTokenizer

    @property
    def start(self) -> int:
        first = self.hub.tokenizer([""]).input_ids[0][:1]
        return int(first != [] and first[0] != self.hub.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        return self.hub.tokenizer.pad_token_id

    def encode(self, names: Sequence[str]) -> list[list[int]]:
        tokenizer = self.hub.tokenizer
        rows = tokenizer([self.hub.clean_fn(name) for name in names]).input_ids
        _check_no_special(names, [row[self.start : -1] for row in rows], tokenizer.all_special_ids)
        if self.hub.strip_sep_token:  # as open_clip replaces the token
            rows = [[0 if token == tokenizer.sep_token_id else token for token in row] for row in rows]
        return rows


Tokenizer = CLIPTokenizer | HubTokenizer
clip_tokenizer = cache(CLIPTokenizer)


def get_tokenizer(architecture: CLIPArchitecture) -> Tokenizer:
    """Return the tokenizer of an architecture's text encoder.

    Raises:
        FileNotFoundError: the tokenizer is on a hub, not in the hub's cache, and cannot be downloaded.
        ImportError: the tokenizer needs the package ``transformers``.
    """
    hub_name = architecture.text.hf_tokenizer_name
    if not hub_name:
        return clip_tokenizer()
    needs = f"{architecture.name!r} needs the tokenizer {hub_name!r} of the Hugging Face hub"
    try:
        return HubTokenizer(open_clip.get_tokenizer(architecture.name))
    except ImportError as error:
        raise ImportError(f"{needs}, which needs a package: pip install transformers.") from error
    except OSError as error:  # raised by the hub's client without a network
        raise FileNotFoundError(
            f"{needs}, which is not in its cache and could not be downloaded ({error}). On a machine with a "
            f"network, `open_clip.get_tokenizer({architecture.name!r})` fetches it. Copy the hub's cache "
            "here (the folder HF_HOME)."
        ) from error


def _check_no_special(names: Sequence[str], words: Sequence[list[int]], special: Sequence[int]) -> None:
    for name, ids in zip(names, words, strict=True):
        if not set(ids).isdisjoint(special):
            raise ValueError(f"Class name {name!r} contains a special token. Rename the class.")

"""The tokenizers of CLIP's text encoders: CLIP's own, and those that open_clip fetches from a hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import open_clip
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from ..clip_models import CLIPArchitecture


class Tokenizer(Protocol):
    """Names to token ids."""

    @property
    def start(self) -> int:
        """How many tokens stand before the words, 1 or 0. Contexts go behind them."""

    @property
    def pad_id(self) -> int:
        """What sequences are filled up with."""

    def encode(self, names: Sequence[str]) -> list[list[int]]:
        """Ids of each name, with start and end token and without padding.

        Raises:
            ValueError: a name has a special token in it.
        """


class CLIPTokenizer:
    """CLIP's byte-pair encoding, ``[sot] name [eot]``; the end token has the highest id."""

    start, pad_id = 1, 0

    def __init__(self) -> None:
        self._tokenizer = SimpleTokenizer()

    def encode(self, names: Sequence[str]) -> list[list[int]]:
        tokenizer = self._tokenizer
        words = [tokenizer.encode(name) for name in names]
        _refuse_special(names, words, tokenizer.all_special_ids)
        return [[tokenizer.sot_token_id, *ids, tokenizer.eot_token_id] for ids in words]


@dataclass(frozen=True)
class HubTokenizer:
    """A tokenizer of open_clip's that comes from the Hugging Face hub, SigLIP's say."""

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
        _refuse_special(names, [row[self.start : -1] for row in rows], tokenizer.all_special_ids)
        if self.hub.strip_sep_token:  # what open_clip puts in its place
            rows = [[0 if token == tokenizer.sep_token_id else token for token in row] for row in rows]
        return rows


clip_tokenizer = cache(CLIPTokenizer)


def get_tokenizer(architecture: CLIPArchitecture) -> Tokenizer:
    """The tokenizer of an architecture's text encoder.

    Raises:
        FileNotFoundError: it is on a hub, and not in the hub's cache, and cannot be downloaded.
        ImportError: it needs the package ``transformers``.
    """
    hub_name = architecture.text.hf_tokenizer_name
    if not hub_name:
        return clip_tokenizer()
    reads = (
        f"MODEL.DENSECLIP.CLIP_MODEL = {architecture.name!r} reads names by the tokenizer {hub_name!r} of "
        "the Hugging Face hub"
    )
    try:
        return HubTokenizer(open_clip.get_tokenizer(architecture.name))
    except ImportError as error:
        raise ImportError(f"{reads}, which needs a package: pip install transformers.") from error
    except OSError as error:  # what the hub's client raises without a network
        raise FileNotFoundError(
            f"{reads}, which is not in its cache and could not be downloaded ({error}). With a network, "
            f"`open_clip.get_tokenizer({architecture.name!r})` fetches it; copy the hub's cache here "
            "(the folder HF_HOME)."
        ) from error


def _refuse_special(names: Sequence[str], words: Sequence[list[int]], special: Sequence[int]) -> None:
    for name, ids in zip(names, words, strict=True):
        if not set(ids).isdisjoint(special):
            raise ValueError(
                f"Class name {name!r} has a special token of CLIP's tokenizer in it. Rename the class."
            )

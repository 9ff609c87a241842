"""The tokenizers of CLIP's text encoders: CLIP's own, and those that open_clip fetches from a hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import open_clip
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from ..clip_models import CLIPArchitecture
from .name_table import NameTokenizer


class CLIPTokenizer:
    """CLIP's byte-pair encoding, ``[sot] name [eot]``; the end token has the highest id.

    Attributes:
        start, end: number of tokens before and after the words, 1 or 0. Contexts go after the former.
        pad_id: fills sequences up.
    """

    start, end, pad_id = 1, 1, 0

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
    def end(self) -> int:
        return len(self.hub.tokenizer([""]).input_ids[0]) - self.start

    @property
    def pad_id(self) -> int:
        return self.hub.tokenizer.pad_token_id

    def encode(self, names: Sequence[str]) -> list[list[int]]:
        tokenizer = self.hub.tokenizer
        rows = tokenizer([self.hub.clean_fn(name) for name in names]).input_ids
        words = [row[self.start : len(row) - self.end] for row in rows]
        _check_no_special(names, words, tokenizer.all_special_ids)
        if self.hub.strip_sep_token:  # as open_clip replaces the token
            rows = [[0 if token == tokenizer.sep_token_id else token for token in row] for row in rows]
        return rows


Tokenizer = CLIPTokenizer | HubTokenizer | NameTokenizer
clip_tokenizer = cache(CLIPTokenizer)


def get_tokenizer(architecture: CLIPArchitecture, folder: str = "") -> Tokenizer:
    """Return the tokenizer of an architecture's text encoder.

    Args:
        folder: with the files of a tokenizer of the hub, such as ``tokenizer.json``; empty: the hub's cache,
            or a download.

    Raises:
        FileNotFoundError: the folder has no tokenizer; or the tokenizer is on a hub, not in the hub's cache,
            and cannot be downloaded.
        ImportError: the tokenizer needs the package ``transformers``.
        ValueError: a folder, for an architecture with CLIP's own tokenizer.
    """
    text, key = architecture.text, "MODEL.DENSECLIP.PROMPT.TOKENIZER"
    if not text.hf_tokenizer_name:
        if folder:
            raise ValueError(f"{key} is {folder!r}, but {architecture.name!r} has CLIP's own. Set it to ''.")
        return clip_tokenizer()
    needs = f"{architecture.name!r} needs the tokenizer {text.hf_tokenizer_name!r} of the Hugging Face hub"
    if folder and not Path(folder).is_dir():
        raise FileNotFoundError(f"{key} = {folder!r}: there is no such folder.")
    try:
        if not folder:
            return HubTokenizer(open_clip.get_tokenizer(architecture.name))
        return HubTokenizer(
            HFTokenizer(folder, text.context_length, local_files_only=True, **(text.tokenizer_kwargs or {}))
        )
    except ImportError as error:
        raise ImportError(f"{needs}, which needs a package: pip install transformers.") from error
    except (OSError, ValueError) as error:  # raised by the hub's client without a network or files
        reason = " ".join(str(error).split())
        if folder:
            raise FileNotFoundError(
                f"{needs}, which is not in {key} = {folder!r} ({reason}). Copy its files there, such as "
                "tokenizer.json and tokenizer_config.json."
            ) from error
        raise FileNotFoundError(
            f"{needs}, which is not in its cache and could not be downloaded ({reason}). With a network, "
            f"`open_clip.get_tokenizer({architecture.name!r})` fetches it. Copy the hub's cache here (the "
            f"folder HF_HOME), or set {key} to a folder with the tokenizer's files."
        ) from error


def _check_no_special(names: Sequence[str], words: Sequence[list[int]], special: Sequence[int]) -> None:
    for name, ids in zip(names, words, strict=True):
        if not set(ids).isdisjoint(special):
            raise ValueError(f"Class name {name!r} contains a special token. Rename the class.")

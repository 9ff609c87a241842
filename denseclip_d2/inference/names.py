"""Names at test time: how a call of the predictor gives them, and their text embeddings."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import repeat
from threading import RLock

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..builder import inference_precision
from ..guidance import guidance_of
from ..language.prompts import SYNONYM, check_class_names
from ..meta_arch.pixel_text import PixelTextSupervision

Names = tuple[str, ...]

NAMES_KEPT = 20_000
"""Number of names whose text embeddings stay in memory, about 4 kB each."""
LISTS_KEPT = 8
"""Number of lists of names that are not checked and stacked again."""


class NamesReader:
    """Check names for a model and encode them, each once. Give the model names for a while.

    One thread at a time has a model's names. Copies and pickles have nothing in memory.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg, self.lock = cfg, RLock()
        self._lists: dict[Names, Tensor | None] = {}  # the last used is last
        self._embeddings: dict[str, Tensor] = {}  # the last used is last

    def of_images(
        self, model: nn.Module, names: Iterable | None, number: int | None = None
    ) -> Iterator[Names | None]:
        """Return an iterator over the names to find in each image; None: those of the model.

        Args:
            names: a list of names for all images; or a list or generator that has for each image a list of
                names or None. None: the names of the model in all images.
            number: number of images; None: unknown.

        Raises:
            ValueError: lists for another number of images; see :meth:`read`. The iterator raises an error for
                a name of a generator.
        """
        if names is None:
            return repeat(None)
        if isinstance(names, Iterator):
            return (None if own is None else as_list(own) for own in names)
        if not _is_nested(names):
            return repeat(self.check(model, names))
        lists = [None if own is None else as_list(own) for own in names]
        if number not in (None, len(lists)):
            raise ValueError(
                f"{len(lists)} lists of names for {number} images. Give one list for each image, or a list "
                "of names for all."
            )
        for own in dict.fromkeys(lists):
            self.check(model, own)
        return iter(lists)

    def check(self, model: nn.Module, names: Iterable[str] | None) -> Names | None:
        """Return names that the model can find as a tuple.

        Raises:
            ValueError: see :meth:`read`.
        """
        own = None if names is None else as_list(names)
        if own is not None and not _has(model, own):
            self.read(model, own)
        return own

    def read(self, model: nn.Module, names: Names, stuff: Names | None = None) -> Tensor | None:
        """Return the text embeddings (K, C) of names and then stuff; None if they depend on the image.

        Args:
            stuff: names of the stuff of a panoptic model; None: those that the model has.

        Raises:
            ValueError: the model finds the classes it was trained on alone, or a name cannot be read.
        """
        with self.lock:
            if not isinstance(model, PixelTextSupervision):
                raise ValueError("This model has no language, and finds the classes it was trained on alone.")
            model.check_takes_names()
            stuff = model.backbone.language.stuff_names if stuff is None else stuff
            names = names + stuff
            if names in self._lists:
                self._lists[names] = self._lists.pop(names)
                return self._lists[names]
            language = model.backbone.language
            _check_separated(name for name in names if name not in language.names)
            check_class_names(names, f"The names of stuff count too: {', '.join(stuff)}." if stuff else "")
            language.read(names)
            self._lists[names] = text = self._encode(model, names)
            _keep(self._lists, LISTS_KEPT)
            return text

    @contextmanager
    def given(self, model: nn.Module, names: Names | None) -> Iterator[None]:
        """Let the model find names for a while; None: those that it has. Other threads wait.

        Raises:
            ValueError: see :meth:`read`.
        """
        with self.lock:
            if names is None or _has(model, names):
                yield
                return
            text = self.read(model, names)
            assert isinstance(model, PixelTextSupervision)
            with model.given_names(names, text):
                yield

    def __reduce__(self):
        return type(self), (self.cfg,)

    @torch.no_grad()
    def _encode(self, model: PixelTextSupervision, names: Names) -> Tensor | None:
        language, known = model.backbone.language, self._embeddings
        if language.mode == "pre":
            return None
        if unread := [name for name in names if name not in known]:
            with inference_precision(self.cfg):
                known.update(zip(unread, language.encode_names(unread, language.contexts)[0], strict=True))
        for name in names:
            known[name] = known.pop(name)
        text = torch.stack([known[name] for name in names])
        _keep(known, NAMES_KEPT)
        return text


def _has(model: nn.Module, names: Names) -> bool:
    guided = guidance_of(model)
    return guided is not None and guided.language.class_names == names


def _is_nested(names: Iterable) -> bool:
    """Return whether names has a list for each image."""
    return isinstance(names, list | tuple) and any(x is None or isinstance(x, list | tuple) for x in names)


def as_list(names: Iterable[str]) -> Names:
    """Return a list of names as a tuple.

    Raises:
        ValueError: no list, an empty one, or one with something else than strings.
    """
    if isinstance(names, str):
        raise ValueError(f"names takes a list of names, such as [{names!r}].")
    if not isinstance(names, Iterable):
        raise ValueError(f"names takes a list of names, not {names!r}.")
    names = tuple(names)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"Names must be strings, not {wrong[0]!r}.")
    if not names:
        raise ValueError("No class names. Give at least one.")
    return names


def _check_separated(names: Iterable[str]) -> None:
    """Refuse a list of names in one string, which would be read as one name. Descriptions have commas."""
    for name in names:
        words = [word.strip() for word in name.split(",") if word.strip()]
        if "," in name and words and not name.rstrip().endswith((".", "!", "?")):
            raise ValueError(
                f"The name {name!r} has a comma. Give each name as a string of its own: "
                f"{', '.join(map(repr, words))}. Synonyms share a class: {SYNONYM.join(words)!r}. "
                "A description ends with a period."
            )


def _keep(kept: dict, number: int) -> None:
    """Forget the first entries of a dict above a number."""
    for key in list(kept)[: max(len(kept) - number, 0)]:
        del kept[key]

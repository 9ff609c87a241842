"""The dictionaries and prefixes of names that trainers add around the weights of a model."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from .load_report import first
from .numpy_pickle import PickledArray

logger = logging.getLogger(__name__)

Fits = Callable[[dict[str, Tensor]], int]
"""Return how many tensors, by their names, a model would take."""

# Keys under which trainers save a model, most usual first.
_MODEL = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module", "student")
# Words in keys and prefixes of an averaged copy of the model. Detectron2 loads the model itself.
_AVERAGED = {"ema", "swa", "averaged", "average", "teacher"}
# Modules that PyTorch wraps around others: torch.compile, FSDP, activation checkpointing.
_PYTORCH = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
SAVE = "torch.save(model.state_dict(), FILE)"
_DEPTH = 4  # of dictionaries, and of prefixes


class NotWeightsError(ValueError):
    """The content of a file holds no weights by name."""


@dataclass(frozen=True)
class Unwrapped:
    """Weights by name, and where in the file they were.

    Attributes:
        weights: by name.
        where: keys of the dictionaries around the weights, joined by dots.
        prefix: removed from the beginning of every name.
    """

    weights: dict[str, Tensor]
    where: str = ""
    prefix: str = ""

    def __str__(self) -> str:
        under = f"under the key {self.where!r}" if self.where not in ("", "model") else ""
        without = f"without the prefix {self.prefix!r}" if self.prefix else ""
        return ", ".join(filter(None, (under, without)))


def unwrap(content: object, fits: Fits | None = None) -> Unwrapped:
    """Return the weights in the content of a file.

    Of several dictionaries of tensors, the first that fits is returned. Averages of the model come last. The
    log names the others. If no name fits, the prefix is removed without which most names fit.

    Args:
        content: of the file.
        fits: None: no prefix is removed but PyTorch's own.

    Raises:
        NotWeightsError: there are no weights by name, or several dictionaries of equal rank.
    """
    found = dict(_dictionaries(content, set()))
    if not found:
        raise NotWeightsError(f"{_description(content)}. Weights by name are needed, as from {SAVE}")
    ranked = sorted(found, key=_rank)
    if fits is None and len(ranked) > 1 and _rank(ranked[0]) == _rank(ranked[1]):
        raise NotWeightsError(
            f"it holds several sets of weights, under {first(map(repr, ranked))}. Save the right one alone"
        )
    candidates = (Unwrapped(_plain(found[where]), where) for where in ranked)
    chosen = usual = next(candidates)
    if fits is not None:
        fitted = (_without_prefix(candidate, fits) for candidate in chain([usual], candidates))
        chosen = next((candidate for candidate in fitted if fits(candidate.weights)), usual)
    _log(chosen, ranked, len(found[chosen.where]))
    return chosen


def _dictionaries(
    content: object, seen: set[int], keys: tuple[str, ...] = ()
) -> Iterator[tuple[str, Mapping]]:
    """Yield every dictionary of tensors by name with the keys that lead to it, except optimizers.

    Args:
        seen: ids of the dictionaries so far: a file can hold one many times, or inside itself.
    """
    if not isinstance(content, Mapping) or not content or id(content) in seen:
        return
    seen.add(id(content))
    names = all(isinstance(key, str) for key in content)
    if names and all(isinstance(value, Tensor | PickledArray) for value in content.values()):
        yield ".".join(keys), content
    elif len(keys) < _DEPTH:
        for key, value in content.items():
            if isinstance(key, str) and not key.startswith("optim"):
                yield from _dictionaries(value, seen, (*keys, key))


def _rank(where: str) -> tuple[bool, int, int]:
    """Return the sort key of a dictionary: the model's, others, averages."""
    key = where.partition(".")[0]
    return _is_average(where), _MODEL.index(key) if key in _MODEL else len(_MODEL), where.count(".")


def _is_average(words: str) -> bool:
    return not _AVERAGED.isdisjoint(re.split(r"[._]", words.lower()))


def _tensor(value: Tensor | PickledArray) -> Tensor:
    tensor = torch.from_numpy(value.value) if isinstance(value, PickledArray) else value
    return tensor.float() if tensor.is_floating_point() else tensor


def _plain(weights: Mapping) -> dict[str, Tensor]:
    """Return float32 tensors by name, without the prefixes of PyTorch's wrappers."""
    tensors = {name: _tensor(value) for name, value in weights.items()}
    plain = {_PYTORCH.sub("", name): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):  # a model beside a compiled copy of it
        return tensors
    if all(name.startswith("module.") for name in plain):  # DataParallel
        plain = {name.removeprefix("module."): tensor for name, tensor in plain.items()}
    return plain


def _without_prefix(candidate: Unwrapped, fits: Fits) -> Unwrapped:
    """Return the weights without the prefix that lets most of them fit; unchanged if any fits."""
    weights = candidate.weights
    if fits(weights):
        return candidate
    parts = [name.split(".") for name in weights]
    beginnings = [".".join(p[:n]) + "." for p in parts for n in range(1, min(len(p), _DEPTH + 1))]
    options = {
        prefix: {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
        for prefix in dict.fromkeys(beginnings)
    }
    order = sorted(options, key=lambda p: (-fits(options[p]), _is_average(p), len(p)))
    if not order or not fits(options[order[0]]):
        return candidate
    return Unwrapped(options[order[0]], candidate.where, order[0])


def _log(chosen: Unwrapped, found: Sequence[str], total: int) -> None:
    others = [where for where in found if where != chosen.where and (_rank(where)[0] or where in _MODEL)]
    if str(chosen):
        logger.info("Weights are read %s.", chosen)
    if others:
        logger.warning(
            "The file also has weights under %s, which are not loaded. To load them, save them alone.",
            first(map(repr, others)),
        )
    if outside := total - len(chosen.weights):
        logger.warning("%d tensors whose names do not begin with %r are not loaded.", outside, chosen.prefix)


def _description(content: object) -> str:
    """Return what the content is instead of weights."""
    if not isinstance(content, Mapping):
        return f"it is a {type(content).__name__}"
    if not content:
        return "it is empty"
    inner = next((content[key] for key in _MODEL if isinstance(content.get(key), Mapping)), content)
    tensors = [key for key, value in inner.items() if isinstance(value, Tensor | PickledArray)]
    if tensors:
        other = next(key for key in inner if key not in tensors or not isinstance(key, str))
        return f"beside tensors it holds {other!r}, a {type(inner[other]).__name__}"
    return "it holds " + first(f"{key!r} (a {type(value).__name__})" for key, value in inner.items())

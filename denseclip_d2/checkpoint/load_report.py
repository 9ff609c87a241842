from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import indent

from tabulate import tabulate
from torch import Tensor

COLUMNS = ("matched", "reshaped", "new", "left over", "misshapen")


@dataclass(frozen=True)
class LoadReport:
    """How the weights of a file match those of a model, by name.

    Attributes:
        matched, missing: names of the model's tensors that are in the file, or are not.
        misshapen: names in both with other shapes: ``(the file's, the model's)``.
        left_over: names in the file that the model does not have.
        reshaped: what was done to matched weights that did not fit as they were.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    left_over: tuple[str, ...]
    reshaped: dict[str, str]

    @classmethod
    def compare(
        cls, weights: dict[str, Tensor], model: dict[str, Tensor], reshaped: dict[str, str]
    ) -> "LoadReport":
        """
        Args:
            weights: of the file, under the model's names.
            model: the model's ``state_dict()``.
            reshaped: what was done to some of the weights.
        """
        shared = [name for name in model if name in weights]
        shapes = {name: (tuple(weights[name].shape), tuple(model[name].shape)) for name in shared}
        misshapen = {name: (there, here) for name, (there, here) in shapes.items() if there != here}
        return cls(
            matched=tuple(name for name in shared if name not in misshapen),
            missing=tuple(name for name in model if name not in weights),
            misshapen=misshapen,
            left_over=tuple(name for name in weights if name not in model),
            reshaped=reshaped,
        )

    def __str__(self) -> str:
        unchanged = [name for name in self.matched if name not in self.reshaped]
        reshaped = [name for name in self.matched if name in self.reshaped]
        columns = map(_by_module, (unchanged, reshaped, self.missing, self.left_over, self.misshapen))
        counts = dict(zip(COLUMNS, columns, strict=True))
        modules = list(dict.fromkeys(module for column in counts.values() for module in column))
        rows = [[module, *(counts[column][module] or "" for column in COLUMNS)] for module in modules]
        rows.append(["all", *(sum(counts[column].values()) for column in COLUMNS)])
        table = tabulate(rows, headers=["module", *COLUMNS], tablefmt="plain")
        details = [f"{name}: {how}" for name, how in self.reshaped.items()]
        return "\n".join(["Weights, in tensors:", indent("\n".join([table, *details]), "  ")])


def first(names: Iterable[str], count: int = 5) -> str:
    """Return the first of many names, for a sentence."""
    names = list(names)
    return (", ".join(names[:count]) + (" ..." if len(names) > count else "")) or "none"


def _by_module(names: Iterable[str]) -> Counter:
    return Counter(".".join(name.split(".")[:-1][:2]) or name for name in names)

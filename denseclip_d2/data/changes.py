from dataclasses import dataclass, field

from tabulate import tabulate


@dataclass
class Changes:
    """What a reader changed in a file.

    Attributes:
        first: the number of changes and the first changed item, by kind of change.
        mask_faults: the objects without a valid mask, except crowds, and the reason.
    """

    first: dict[str, tuple[int, str]] = field(default_factory=dict)
    mask_faults: list[str] = field(default_factory=list)

    def add(self, what: str, item: str, count: int = 1) -> None:
        """Count a change of one kind, such as "iscrowd was missing: set to 0"."""
        before, example = self.first.get(what, (0, item))
        self.first[what] = before + count, example

    def __bool__(self) -> bool:
        return bool(self.first)

    def __str__(self) -> str:
        rows = [(what, count, example) for what, (count, example) in self.first.items()]
        return tabulate(rows, ["change", "items", "first"], tablefmt="github")
